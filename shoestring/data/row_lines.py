"""Files whose rows are lines, or begin and end with them: JSON, CSV, text (source: ours)."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa

from shoestring.data.packed import kind_of
from shoestring.data.row_basics import TOO_LONG, FileRows, Read, Rows, opened
from shoestring.data.row_types import JSON_TEXT, fields_widened, type_of, widened
from shoestring.data.sources import SourceFile

CUT_ROWS = 4096
"""Rows between two places where reading may begin."""
TEXT = "text"


class Lines:
    """Lines of a stream with their offsets; of one that is too long only the beginning is kept.

    Args:
        limit_bytes: of a line.
    """

    def __init__(self, stream: BinaryIO, offset: int, limit_bytes: int) -> None:
        self._stream = stream
        self._limit_bytes = limit_bytes
        self.offset = offset

    def __iter__(self) -> Iterator[tuple[bytes, bool]]:
        """(line, whether it is whole)."""
        while line := self._stream.readline(self._limit_bytes + 1):
            self.offset += len(line)
            whole = line.endswith(b"\n") or len(line) <= self._limit_bytes
            rest = line
            while not whole and not rest.endswith(b"\n"):
                rest = self._stream.readline(self._limit_bytes)
                if not rest:
                    break
                self.offset += len(rest)
            yield line, whole


class LineRows:
    """Files whose rows are lines, or begin and end with them; what a row means is said by subclasses."""

    def scan(self, file: SourceFile, limit_bytes: int) -> FileRows:
        """See RowFormat."""
        count, largest = 0, 0
        cuts: list[tuple[int, int]] = []
        fields: dict[str, pa.DataType] = {}
        with opened(file) as stream:
            lines = Lines(stream, 0, limit_bytes)
            offset = self.begin(lines)
            for record, _ in self.rows(lines):
                if count % CUT_ROWS == 0:
                    cuts.append((count, offset))
                largest = max(largest, lines.offset - offset)
                offset, count = lines.offset, count + 1
                fields = self.widen(fields, record) if record else fields
        return FileRows(count, tuple(cuts) or ((0, 0),), fields | self.own_fields(fields), largest)

    def read(
        self, file: SourceFile, about: FileRows, start: int, stop: int, schema: pa.Schema, limit_bytes: int
    ) -> Read:
        """See RowFormat."""
        _, packed = kind_of(file.name)
        first, offset = max((cut for cut in about.cuts if cut[0] <= start), default=(0, 0))
        found = Rows()
        with opened(file) as stream:
            lines = Lines(stream, 0, limit_bytes)
            self.begin(lines)
            if packed:  # there is no way into the middle
                first = 0
            elif offset > lines.offset:
                stream.seek(offset)
            number = first
            for record, error in self.rows(lines):
                if number >= start:
                    found.add(self.values(record, schema) if record else record, error)
                number += 1
                if number >= stop:
                    break
        missing = (stop - start) - len(found.records)
        for _ in range(missing):
            found.add(None, "the file has changed: this row is not there any more")
        return found.table(schema), found.errors

    def begin(self, lines: Lines) -> int:
        """Read what comes before the rows; returns the offset of the first."""
        return 0

    def own_fields(self, fields: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """Columns that are there whatever the rows say."""
        return {}

    def widen(self, fields: dict[str, pa.DataType], record: dict[str, Any]) -> dict[str, pa.DataType]:
        """Columns that hold this row, too."""
        return fields_widened(fields, record)

    def values(self, record: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
        """A row's values as the columns want them."""
        return record

    def rows(self, lines: Lines) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """Each row, or what is wrong with it."""
        raise NotImplementedError


class JsonRows(LineRows):
    """A record a line; blank lines are none."""

    def rows(self, lines: Lines) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """See LineRows."""
        for line, whole in lines:
            if not whole:
                yield None, TOO_LONG
            elif line.strip():
                yield self._record(line)

    def _record(self, line: bytes) -> tuple[dict[str, Any] | None, str]:
        try:
            record = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return None, f"not JSON: {error}"
        return (record, "") if isinstance(record, dict) else (None, "JSON, but not a record")


class TextRows(LineRows):
    """A text a line, in the column `text`."""

    def own_fields(self, fields: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """See LineRows."""
        return {TEXT: pa.string()}

    def rows(self, lines: Lines) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """See LineRows."""
        for line, whole in lines:
            if not whole:
                yield None, TOO_LONG
                continue
            try:
                yield {TEXT: line.rstrip(b"\r\n").decode("utf-8")}, ""
            except UnicodeDecodeError as error:
                yield None, f"not UTF-8: byte {error.start} ({error.reason})"


class CsvRows(LineRows):
    """Values by commas, quoted where needed; the first row names the columns. A quoted value may hold line
    ends."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def begin(self, lines: Lines) -> int:
        """See LineRows."""
        for line, _ in lines:
            head = line.decode("utf-8-sig", "replace")
            self._names = next(csv.reader([head]), [])
            break
        if len(set(self._names)) != len(self._names):
            raise ValueError(f"two columns have one name: {', '.join(self._names)}")
        return lines.offset

    def own_fields(self, fields: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """See LineRows."""
        return {name: fields[name] if name in fields else pa.string() for name in self._names}

    def rows(self, lines: Lines) -> Iterator[tuple[dict[str, Any] | None, str]]:
        """See LineRows."""
        held = b""
        for line, whole in lines:
            if not whole:
                held = b""
                yield None, TOO_LONG
                continue
            held += line
            if held.count(b'"') % 2:  # a value goes on in the next line
                continue
            row, held = held, b""
            if row.strip():
                yield self._record(row)
        if held:
            yield None, "a quoted value has no end"

    def _record(self, row: bytes) -> tuple[dict[str, Any] | None, str]:
        try:
            values = next(csv.reader([row.decode("utf-8").rstrip("\r\n")]))
        except (UnicodeDecodeError, csv.Error) as error:
            return None, f"not CSV: {error}"
        if len(values) != len(self._names):
            return None, f"{len(values)} values in a table of {len(self._names)} columns"
        return {name: value or None for name, value in zip(self._names, values, strict=True)}, ""

    def widen(self, fields: dict[str, pa.DataType], record: dict[str, Any]) -> dict[str, pa.DataType]:
        """See LineRows. Numbers are told from text by how they are written; what is mixed stays text."""
        found = dict(fields)
        for name, value in record.items():
            if value is None or (name in found and found[name] == pa.string()):
                continue
            kind = _written_as(value)
            wide = widened(found[name], kind) if name in found else kind
            found[name] = pa.string() if wide == JSON_TEXT else wide
        return found

    def values(self, record: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
        """See LineRows."""
        readers = {one.name: _READERS[one.type] for one in schema if one.type in _READERS}
        return {
            name: readers[name](value) if name in readers and value is not None else value
            for name, value in record.items()
        }


_READERS: Mapping[pa.DataType, Callable[[str], Any]] = MappingProxyType(
    {pa.int64(): int, pa.float64(): float}
)


_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


def _written_as(value: str) -> pa.DataType:
    """Whole number, number, or text: `007` and `1_000` are text."""
    found = _NUMBER.fullmatch(value)
    if found is None:
        return pa.string()
    whole = found.group(2) is None and found.group(3) is None
    return pa.int64() if whole and type_of(int(value)) == pa.int64() else pa.float64()
