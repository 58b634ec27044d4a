"""Writers of files of output: parquet, jsonl, csv, text, images (source: ours).

Each writes tables of one schema to a stream, in their order; what a format cannot say is told in SinkConfig.
"""

from __future__ import annotations

import base64
from typing import Any, BinaryIO, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from shoestring.base.errors import SinkError, first_line
from shoestring.data.output_state import ERROR, IDENTITY
from shoestring.data.sink_config import SinkConfig


class RowWriter(Protocol):
    """Writes rows to a stream."""

    def write(self, table: pa.Table) -> None:
        """More rows, of the schema that the writer was made for."""
        ...

    def close(self) -> None:
        """The end of the file; the stream stays open."""
        ...


class Pictures(Protocol):
    """Takes files that stand beside a file of output."""

    def add(self, data: bytes, suffix: str) -> str:
        """Write one; returns its name, as rows shall have it."""
        ...


def writer_for(sink: SinkConfig, schema: pa.Schema, stream: BinaryIO, pictures: Pictures) -> RowWriter:
    """The writer of a sink's format.

    Raises:
        SinkError: the format cannot hold rows of that schema.
    """
    if sink.format == "parquet":
        return ParquetRows(schema, stream, sink.compression)
    if sink.format == "images":
        return ImageRows(sink, schema, stream, pictures)
    if sink.format == "jsonl":
        return JsonRows(stream)
    if sink.format == "csv":
        return CsvRows(schema, stream)
    return TextRows(text_column(sink, schema), stream)


def check_schema(sink: SinkConfig, schema: pa.Schema) -> None:
    """Whether the format of a sink can hold such rows.

    Raises:
        SinkError: it cannot; with what to set.
    """
    if sink.format == "text":
        text_column(sink, schema)
    elif sink.format == "images":
        _image_place(sink, schema)


class ParquetRows:
    """A parquet file; each write is a row group or more."""

    def __init__(self, schema: pa.Schema, stream: BinaryIO, compression: str) -> None:
        try:
            self._writer = pq.ParquetWriter(stream, schema, compression=compression)
        except pa.ArrowNotImplementedError as error:
            raise SinkError(
                f"parquet cannot hold these columns: {first_line(error)}",
                "leave the column out (sink.columns), or set sink.format to jsonl",
            ) from error

    def write(self, table: pa.Table) -> None:
        """See RowWriter."""
        self._writer.write_table(table)

    def close(self) -> None:
        """See RowWriter."""
        self._writer.close()


class ImageRows:
    """The bytes of one column as files, the other columns and the files' names as parquet."""

    def __init__(self, sink: SinkConfig, schema: pa.Schema, stream: BinaryIO, pictures: Pictures) -> None:
        self._place = _image_place(sink, schema)
        self._suffix, self._pictures = sink.image_suffix, pictures
        self._schema = schema.set(self._place, pa.field(sink.image, pa.string()))
        self._rows = ParquetRows(self._schema, stream, sink.compression)

    def write(self, table: pa.Table) -> None:
        """See RowWriter. A row without an image has no file."""
        names = [
            None if value is None else self._pictures.add(value, self._suffix)
            for value in table.column(self._place).to_pylist()
        ]
        field = self._schema.field(self._place)
        self._rows.write(table.set_column(self._place, field, pa.array(names, pa.string())))

    def close(self) -> None:
        """See RowWriter."""
        self._rows.close()


class JsonRows:
    """A line of JSON for each row."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def write(self, table: pa.Table) -> None:
        """See RowWriter."""
        self._stream.write(self._encoder.encode_lines(plain(table).to_pylist()))

    def close(self) -> None:
        """See RowWriter."""


class CsvRows:
    """Comma-separated values with a header; text in quotes, so that it differs from nothing."""

    def __init__(self, schema: pa.Schema, stream: BinaryIO) -> None:
        self._schema = pa.schema([pa.field(field.name, _flat_type(field.type)) for field in schema])
        self._writer = pa_csv.CSVWriter(stream, self._schema)

    def write(self, table: pa.Table) -> None:
        """See RowWriter."""
        simple = plain(table)
        columns = [
            _flat(column, field.type) for column, field in zip(simple.columns, self._schema, strict=True)
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        """See RowWriter."""
        self._writer.close()


class TextRows:
    """One column as lines; a line end within a value becomes the two characters `\\n`."""

    def __init__(self, column: str, stream: BinaryIO) -> None:
        self._column, self._stream = column, stream

    def write(self, table: pa.Table) -> None:
        """See RowWriter."""
        values = plain(table.select([self._column])).column(0).to_pylist()
        self._stream.write("".join(f"{_line(value)}\n" for value in values).encode())

    def close(self) -> None:
        """See RowWriter."""


def text_column(sink: SinkConfig, schema: pa.Schema) -> str:
    """The column that a sink of lines writes.

    Raises:
        SinkError: the settings name one that is not there, or none where there are several.
    """
    names = [name for name in schema.names if name not in (IDENTITY, ERROR)]
    if sink.text and sink.text in schema.names:
        return sink.text
    if sink.text or len(names) != 1:
        what = f"there is no column {sink.text!r}" if sink.text else f"there are {len(names)} columns"
        raise SinkError(
            f"sink.format is text, which is one column as lines, and {what}",
            f"set sink.text to one of: {', '.join(names)}",
        )
    return str(names[0])


def plain(table: pa.Table) -> pa.Table:
    """With types that JSON can say: times as text, decimals as text, bytes stay bytes."""
    kinds = [_plain_type(field.type) for field in table.schema]
    columns = []
    for column, kind in zip(table.columns, kinds, strict=True):
        if isinstance(column.type, pa.BaseExtensionType):
            column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
        columns.append(column if column.type == kind else column.cast(kind))
    return pa.Table.from_arrays(columns, names=table.schema.names)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind])
    return kind


def _flat_type(kind: pa.DataType) -> pa.DataType:
    kind = _plain_type(kind)
    simple = (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        or pa.types.is_large_string(kind)
    )  # fmt: skip
    return kind if simple else pa.string()


def _flat(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as CSV has it: nested values as JSON text, bytes as base64."""
    if column.type == kind:
        return column
    values = [None if value is None else _one_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, kind)])


def _one_text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=str).decode()


def _line(value: Any) -> str:
    if value is None:
        return ""
    return _one_text(value).replace("\r", "\\r").replace("\n", "\\n")


def _image_place(sink: SinkConfig, schema: pa.Schema) -> int:
    place: int = schema.get_field_index(sink.image)
    kind = schema.field(place).type if place >= 0 else None
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        what = f"is {kind}, not bytes" if kind is not None else "is not there"
        raise SinkError(
            f"sink.format is images, and the column {sink.image!r} {what}",
            f"set sink.image to a column of encoded images; there are: {', '.join(schema.names)}",
        )
    return place
