"""Files whose rows are lines, or begin and end with them: JSON, CSV, text (source: ours)."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

import msgspec
import pyarrow as pa

from shoestring.data.row_basics import TOO_LONG, FileRows, Read, Rows, opened
from shoestring.data.row_cursors import LineCursor, Row
from shoestring.data.row_types import JSON_TEXT, fields_widened, type_of, widened
from shoestring.data.sources import SourceFile

CUT_ROWS = 4096
"""Rows between two places where reading may begin."""
TEXT = "text"
NO_END = "a quoted value has no end"


class Line(NamedTuple):
    """Bytes; whether they are the whole line; how many it has in the file."""

    data: bytes
    whole: bool
    size_bytes: int


class Lines:
    """Lines of a stream with their offsets; of one that is too long only the beginning is kept.

    Args:
        limit_bytes: of a line.

    Attributes:
        offset: of the next line.
    """

    def __init__(self, stream: BinaryIO, offset: int, limit_bytes: int) -> None:
        self._stream = stream
        self._again: deque[Line] = deque()
        self.limit_bytes = limit_bytes
        self.offset = offset

    def __iter__(self) -> Iterator[Line]:
        while (line := self.next()) is not None:
            yield line

    def next(self) -> Line | None:
        """The next line; None: there is none."""
        line = self._again.popleft() if self._again else self._read()
        self.offset += line.size_bytes
        return line if line.data else None

    def back(self, lines: Sequence[Line]) -> None:
        """Lines that were the last ones are the next ones again."""
        self._again.extendleft(reversed(lines))
        self.offset -= sum(line.size_bytes for line in lines)

    def _read(self) -> Line:
        data = self._stream.readline(self.limit_bytes + 1)
        whole = data.endswith(b"\n") or len(data) <= self.limit_bytes
        size_bytes, rest = len(data), data
        while not whole and not rest.endswith(b"\n"):
            rest = self._stream.readline(self.limit_bytes)
            if not rest:
                break
            size_bytes += len(rest)
        return Line(data, whole, size_bytes)


class LineRows:
    """Files whose rows are lines, or begin and end with them; what a row means is said by subclasses.

    Args:
        cursor: where an earlier read has come to.
    """

    def __init__(self, cursor: LineCursor) -> None:
        self._cursor = cursor

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
        found = Rows()
        for record, error in self._cursor.read(self, file, about, start, stop, limit_bytes):
            found.add(self.values(record, schema) if record else record, error)
        missing = (stop - start) - len(found.records)
        for _ in range(missing):
            found.add(None, "the file has changed: this row is not there any more")
        return found.table(schema), found.errors

    def rows_from(self, stream: BinaryIO, offset: int, limit_bytes: int) -> Iterator[Row]:
        """See Lined."""
        lines = Lines(stream, 0, limit_bytes)
        self.begin(lines)
        if offset > lines.offset:
            stream.seek(offset)
            lines.offset = offset
        yield from self.rows(lines)

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

    def rows(self, lines: Lines) -> Iterator[Row]:
        """Each row, or what is wrong with it."""
        raise NotImplementedError


class JsonRows(LineRows):
    """A record a line; blank lines are none."""

    def rows(self, lines: Lines) -> Iterator[Row]:
        """See LineRows."""
        for line, whole, _ in lines:
            if not whole:
                yield None, TOO_LONG
            elif line.strip():
                yield self._record(line)

    def _record(self, line: bytes) -> Row:
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

    def rows(self, lines: Lines) -> Iterator[Row]:
        """See LineRows."""
        for line, whole, _ in lines:
            if not whole:
                yield None, TOO_LONG
                continue
            try:
                yield {TEXT: line.rstrip(b"\r\n").decode("utf-8")}, ""
            except UnicodeDecodeError as error:
                yield None, f"not UTF-8: byte {error.start} ({error.reason})"


class CsvRows(LineRows):
    """Values by commas, quoted where needed; the first row names the columns. A quoted value may hold line
    ends. Where it has no end, its first line is an error, and those after it are rows of their own."""

    def __init__(self, cursor: LineCursor) -> None:
        super().__init__(cursor)
        self._names: list[str] = []

    def begin(self, lines: Lines) -> int:
        """See LineRows."""
        line = lines.next()
        if line is not None:
            head = line.data.decode("utf-8-sig", "replace")
            self._names = next(csv.reader([head]), [])
        if len(set(self._names)) != len(self._names):
            raise ValueError(f"two columns have one name: {', '.join(self._names)}")
        return lines.offset

    def own_fields(self, fields: dict[str, pa.DataType]) -> dict[str, pa.DataType]:
        """See LineRows."""
        return {name: fields[name] if name in fields else pa.string() for name in self._names}

    def rows(self, lines: Lines) -> Iterator[Row]:
        """See LineRows."""
        # No value is longer than its row; the reader's own bound is for all of the process.
        csv.field_size_limit(max(csv.field_size_limit(), lines.limit_bytes + 1))
        for line in lines:
            if not line.whole:
                yield None, TOO_LONG
            elif quotes_after(line.data, QUOTES_CLOSED) == QUOTES_OPEN:
                yield self._over_lines(line, lines)
            elif line.data.strip():
                yield self._record(line.data)

    def _over_lines(self, first: Line, lines: Lines) -> Row:
        """The row whose last value goes on in the next line."""
        held, size_bytes, quotes, error = [first], first.size_bytes, QUOTES_OPEN, ""
        while quotes == QUOTES_OPEN and not error:
            line = lines.next()
            if line is None:
                error = NO_END
                break
            held.append(line)
            size_bytes += line.size_bytes
            quotes = quotes_after(line.data, QUOTES_OPEN)
            if not line.whole or size_bytes > lines.limit_bytes + 1:
                error = f"{TOO_LONG}, or {NO_END}"
        if quotes == QUOTES_BROKEN:
            error = NO_END
        if not error:
            return self._record(b"".join(line.data for line in held))
        lines.back(held[1:])
        return None, error

    def _record(self, row: bytes) -> Row:
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


QUOTES_CLOSED, QUOTES_OPEN, QUOTES_BROKEN = 0, 1, 2


def quotes_after(line: bytes, quotes: int) -> int:
    """Whether a quoted value goes on after a line.

    A quote opens a value only at its beginning; elsewhere it is text (`5" pipe`). Broken: the value from the
    lines before ends in the midst of text (`"x` in one line, `2,"y"` in the next), so that its own quote was
    a stray one.

    Args:
        quotes: `QUOTES_OPEN` where the line goes on with a value of the lines before, else `QUOTES_CLOSED`.
    """
    goes_on = inside = quotes == QUOTES_OPEN
    at = 0
    if not inside and line.startswith(b'"'):
        inside, at = True, 1
    while True:
        if not inside:
            at = line.find(b',"', at)
            if at < 0:
                return QUOTES_CLOSED
            inside, at = True, at + 2
            continue
        at = line.find(b'"', at)
        if at < 0:
            return QUOTES_OPEN
        after = line[at + 1 : at + 2]
        if after == b'"':  # two stand for one
            at += 2
            continue
        if goes_on and after not in (b",", b"\r", b"\n", b""):
            return QUOTES_BROKEN
        inside, goes_on, at = False, False, at + 1


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
