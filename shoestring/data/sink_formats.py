"""Files of output in their formats: parquet, JSON lines, CSV, text, images (source: ours)."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import IO, Any, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq

from shoestring.base.errors import SinkError
from shoestring.data.sink_config import SinkConfig

ROW, ERROR = "row", "error"
"""Columns that each output has: the row's identity, and what is wrong with it (null: nothing)."""
SUFFIXES = {"parquet": ".parquet", "jsonl": ".jsonl", "csv": ".csv", "text": ".txt", "images": ".parquet"}
GROUP_ROWS = 1 << 17
"""Of a row group: smaller tables are gathered up to that."""
GROUP_BYTES = 64 << 20
LINE_BREAKS = str.maketrans({"\n": " ", "\r": " "})

Beside = Callable[[str, bytes], str]
"""Writes a file of its own beside, of this name; returns what its column shall say."""


class FormatWriter(Protocol):
    """Writes tables of one schema into a stream."""

    def write(self, table: pa.Table) -> None:
        """More rows."""
        ...

    def finish(self) -> None:
        """No more rows; the stream stays open."""
        ...


def output_schema(sink: SinkConfig, schema: pa.Schema) -> pa.Schema:
    """Of the columns that stay.

    Raises:
        SinkError: a column that was asked for is not there, or the format cannot hold what is.
    """
    missing = [name for name in sink.columns if name not in schema.names]
    if missing:
        raise SinkError(f"the output has no column {missing[0]!r}", f"choose from: {', '.join(schema.names)}")
    kept = [one for one in schema if not sink.columns or one.name in {*sink.columns, ROW, ERROR}]
    schema = pa.schema(kept)
    if sink.format == "images":
        if sink.image not in schema.names or not _holds_bytes(schema.field(sink.image).type):
            raise SinkError(
                f"the sink writes images, and the output has no column {sink.image!r} of bytes",
                "name the column in sink.image, or choose another sink.format",
            )
        at = schema.get_field_index(sink.image)
        schema = schema.set(at, pa.field(sink.image, pa.string()))
    if sink.format == "text" and not [name for name in schema.names if name not in (ROW, ERROR)]:
        raise SinkError("the sink writes text, and the output has no column", "name one in sink.columns")
    return schema


def open_writer(sink: SinkConfig, stream: IO[bytes], schema: pa.Schema, beside: Beside) -> FormatWriter:
    """A writer into this stream.

    Args:
        schema: of what `write` is given, before `output_schema`.
        beside: for what is a file of its own.
    """
    kept = output_schema(sink, schema)
    if sink.format == "parquet":
        return ParquetWriter(stream, kept)
    if sink.format == "images":
        return ImageWriter(ParquetWriter(stream, kept), sink, beside)
    if sink.format == "jsonl":
        return JsonWriter(stream, kept)
    return CsvWriter(stream, kept) if sink.format == "csv" else TextWriter(stream, kept)


class ParquetWriter:
    """One file; small tables are gathered to row groups."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(stream, schema, compression="zstd", compression_level=1)
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0

    def write(self, table: pa.Table) -> None:
        """See FormatWriter."""
        table = table.select(self._schema.names)
        self._waiting.append(table)
        self._rows += table.num_rows
        self._bytes += table.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """See FormatWriter."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting, self._rows, self._bytes = [], 0, 0


class JsonWriter:
    """A row a line; bytes as base64."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self._stream, self._names = stream, schema.names
        self._encoder = msgspec.json.Encoder()

    def write(self, table: pa.Table) -> None:
        """See FormatWriter."""
        lines = [self._encoder.encode(row) for row in table.select(self._names).to_pylist()]
        if lines:
            self._stream.write(b"\n".join(lines) + b"\n")

    def finish(self) -> None:
        """See FormatWriter."""


class CsvWriter:
    """A heading and a row a line; what is no simple value stands as JSON."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self._stream, self._names = stream, schema.names
        heading = io.StringIO()
        csv.writer(heading, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(self._names)
        stream.write(heading.getvalue().encode())

    def write(self, table: pa.Table) -> None:
        """See FormatWriter."""
        columns = [_simple(table.column(name)) for name in self._names]
        options = pc.WriteOptions(include_header=False, quoting_style="needed")
        pc.write_csv(pa.table(columns, names=self._names), self._stream, options)

    def finish(self) -> None:
        """See FormatWriter."""


class TextWriter:
    """The first column that is kept, a row a line; line breaks within become spaces. A row with an error is
    an empty line."""

    def __init__(self, stream: IO[bytes], schema: pa.Schema) -> None:
        self._stream = stream
        self._name = next(name for name in schema.names if name not in (ROW, ERROR))

    def write(self, table: pa.Table) -> None:
        """See FormatWriter."""
        values = table.column(self._name).to_pylist()
        lines = ["" if value is None else _text(value).translate(LINE_BREAKS) for value in values]
        self._stream.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))

    def finish(self) -> None:
        """See FormatWriter."""


class ImageWriter:
    """Bytes of a column become files of their own, whose names stand in their place."""

    def __init__(self, writer: FormatWriter, sink: SinkConfig, beside: Beside) -> None:
        self._writer, self._sink, self._beside = writer, sink, beside
        self._count = 0

    def write(self, table: pa.Table) -> None:
        """See FormatWriter."""
        at = table.schema.get_field_index(self._sink.image)
        names: list[str | None] = []
        for value in table.column(at):
            name = f"{self._count:08d}{self._sink.image_suffix}"
            names.append(self._beside(name, value.as_py()) if value.is_valid else None)
            self._count += 1
        field = pa.field(self._sink.image, pa.string())
        self._writer.write(table.set_column(at, field, pa.array(names, pa.string())))

    def finish(self) -> None:
        """See FormatWriter."""
        self._writer.finish()


def _holds_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _simple(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    kind = column.type
    if pa.types.is_nested(kind) or _holds_bytes(kind) or isinstance(kind, pa.ExtensionType):
        return pa.array([None if v is None else _text(v) for v in column.to_pylist()], pa.string())
    return column


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
