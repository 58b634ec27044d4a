"""Documents out of files: text, JSON lines, Parquet; plain, .gz, .zst; any fsspec URL (source: ours).

A reader never gives up the others' data for one bad file: what cannot be read comes out as a
`SkippedFile` that names it, in the same stream as the documents.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import fsspec
import msgspec
import pyarrow.lib
import pyarrow.parquet
import zstandard

from shoestring.data.packed import kind_of, unpacked
from shoestring.data.sources import SourceFile

TEXT_PIECE_BYTES = 16 << 20
_LONG_LINES = 4
_PARQUET_ROWS = 256
_LINES = (".jsonl", ".ndjson")
_READ_ERRORS = (OSError, EOFError, zlib.error, zstandard.ZstdError, pyarrow.lib.ArrowException, ValueError)


class Document(msgspec.Struct, frozen=True):
    """A text, as the bytes of its UTF-8.

    Attributes:
        name: the file's name, with `#` and a number where a file holds several documents.
        data: may be empty.
        consumed_bytes: how far the file has been read on disk, for showing progress.
    """

    name: str
    data: bytes
    consumed_bytes: int


class SkippedFile(msgspec.Struct, frozen=True):
    """What could not be read of a file.

    Attributes:
        path: the file's URL.
        reason: what is wrong, and where.
        documents: documents of the file that were read all the same.
    """

    path: str
    reason: str
    documents: int


class _Damage(Exception):
    """The rest of a file cannot be used; the text says why."""


class _Rows:
    """Rows of a file that hold no usable text: how many, and what is wrong with the first."""

    def __init__(self) -> None:
        self.total, self.bad, self._first = 0, 0, ""

    def refuse(self, where: str, reason: str) -> None:
        self.bad += 1
        self._first = self._first or f"{where}: {reason}"

    def reason(self) -> str:
        return f"{self.bad} of {self.total} rows skipped; the first, {self._first}" if self.bad else ""


def read_file(file: SourceFile, text_field: str) -> Iterator[Document | SkippedFile]:
    """The documents of a file in order; at its end, at most one `SkippedFile`.

    Args:
        text_field: field or column with the text, for JSON lines and Parquet.
    """
    given, rows, reason = 0, _Rows(), ""
    try:
        with fsspec.open(file.url, "rb").open() as raw:
            for index, document in enumerate(_documents(file, raw, text_field, rows)):
                if file.part is None or (index % file.part.every == 1) == file.part.heldout:
                    given += 1
                    yield document
    except _Damage as error:
        reason = str(error)
    except _READ_ERRORS as error:
        reason = f"cannot be read: {error or type(error).__name__}"
    reasons = [text for text in (rows.reason(), reason) if text]
    if reasons:
        yield SkippedFile(file.url, "; ".join(reasons), given)


def _documents(file: SourceFile, raw: BinaryIO, text_field: str, rows: _Rows) -> Iterator[Document]:
    kind, packed = kind_of(file.name)
    stream = unpacked(raw, packed)
    if kind in _LINES:
        texts = _json_lines(stream, text_field, rows)
    elif kind == ".parquet":
        texts = _parquet(io.BytesIO(stream.read()) if packed else raw, text_field, rows)
    else:
        yield from _plain_text(file, raw, stream)
        return
    for number, data in texts:
        yield Document(f"{file.name}#{number}", data, raw.tell())


def _plain_text(file: SourceFile, raw: BinaryIO, stream: BinaryIO) -> Iterator[Document]:
    """The whole file as one document, or, where it is too long, pieces of it that end with a line."""
    limit = file.part.piece_bytes if file.part else TEXT_PIECE_BYTES
    rest, before_bytes, number = b"", 0, 0
    while True:
        chunk = stream.read(limit)
        rest += chunk
        end = _cut(rest, limit) if chunk else len(rest)
        if chunk and (len(rest) < limit or not end):
            continue
        if not chunk and not rest and number:
            return
        piece, rest = rest[:end], rest[end:]
        _check_text(piece, before_bytes)
        before_bytes += len(piece)
        name = file.name if not number and not chunk else f"{file.name}#{number}"
        yield Document(name, piece, raw.tell())
        number += 1
        if not chunk:
            return


def _cut(data: bytes, limit: int) -> int:
    """Where a piece may end: behind a line, or, in a line without end, between two characters; 0: not yet."""
    end = data.rfind(b"\n") + 1
    if not end and len(data) >= _LONG_LINES * limit:
        end = len(data) - 1
        while end > len(data) - 4 and data[end] & 0xC0 == 0x80:
            end -= 1
    return end


def _check_text(data: bytes, before_bytes: int) -> None:
    if (zero := data.find(b"\0")) >= 0:
        raise _Damage(f"is binary: a zero byte at {before_bytes + zero}")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Damage(f"is not UTF-8: byte {before_bytes + error.start} ({error.reason})") from error


def _json_lines(stream: BinaryIO, text_field: str, rows: _Rows) -> Iterator[tuple[int, bytes]]:
    """(number of the line from 1, text); blank lines are none."""
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        rows.total += 1
        try:
            record = msgspec.json.decode(line)
            if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
                rows.refuse(f"line {number}", f"no text in the field {text_field!r}")
                continue
            data = record[text_field].encode("utf-8")
        except (msgspec.DecodeError, UnicodeError) as error:
            rows.refuse(f"line {number}", f"not JSON: {error}")
            continue
        yield number, data


def _parquet(source: BinaryIO, text_field: str, rows: _Rows) -> Iterator[tuple[int, bytes]]:
    """(number of the row from 1, text)."""
    table = pyarrow.parquet.ParquetFile(source)
    names = table.schema_arrow.names
    if text_field not in names:
        raise _Damage(f"has no column {text_field!r}; its columns: {', '.join(names)}")
    for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_field]):
        for value in batch.column(0).to_pylist():
            rows.total += 1
            data = _cell_text(value)
            if data is None:
                rows.refuse(f"row {rows.total}", f"no text in the column {text_field!r}")
            else:
                yield rows.total, data


def _cell_text(value: Any) -> bytes | None:
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            return None
    return value.encode("utf-8") if isinstance(value, str) else None
