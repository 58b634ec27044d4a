"""What files of rows have in common: what is known of one, rows that were read, opening (source: ours)."""

from __future__ import annotations

import csv
import io
import zlib
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import zstandard

from shoestring.base.errors import DataError, first_line
from shoestring.data.packed import kind_of, unpacked
from shoestring.data.row_types import column_of
from shoestring.data.sources import SourceFile

READ_ERRORS = (
    OSError, EOFError, zlib.error, zstandard.ZstdError, pa.lib.ArrowException, ValueError, csv.Error
)  # fmt: skip
TOO_LONG = "the row is larger than source.max_row_bytes"


@dataclass(frozen=True)
class FileRows:
    """What a look through a file has found.

    Attributes:
        rows: how many.
        cuts: (first row, byte offset or number of a row group), ascending, the first is row 0.
        fields: column -> its type in this file.
        row_bytes: of the largest row.
    """

    rows: int
    cuts: tuple[tuple[int, int], ...]
    fields: dict[str, pa.DataType]
    row_bytes: int = 0


@dataclass
class Rows:
    """Rows that were read, in order: those with an error have no values.

    Attributes:
        records: column -> value, of each row.
        errors: place in `records` -> what is wrong.
    """

    records: list[dict[str, Any]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)

    def add(self, record: dict[str, Any] | None, error: str) -> None:
        """One more row."""
        if record is None:
            self.errors[len(self.records)] = error
        self.records.append(record or {})

    def table(self, schema: pa.Schema) -> pa.Table:
        """As columns of this schema. A value that its column cannot hold is null, and an error of its row."""
        columns = []
        for one in schema:
            column, bad = column_of([record.get(one.name) for record in self.records], one.type)
            columns.append(column)
            for place, error in bad.items():
                self.errors.setdefault(place, f"{one.name}: {error}")
        return pa.table(columns, schema=schema)


Read = tuple[pa.Table, dict[int, str]]
"""Rows as a table of the schema that was asked for, and errors by place in it."""


class opened:
    """A file's contents as a stream, unpacked; what goes wrong inside the block becomes a DataError.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        self._raw: Any = None

    def __enter__(self) -> BinaryIO:
        kind, packed = kind_of(self._file.name)
        try:
            self._raw = fsspec.open(self._file.url, "rb").open()
            stream = unpacked(self._raw, packed)
            return io.BytesIO(stream.read()) if packed and kind == ".parquet" else stream
        except READ_ERRORS as error:
            raise self._unreadable(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._raw is not None:
            self._raw.close()
        if isinstance(error, READ_ERRORS) and not isinstance(error, MemoryError):
            raise self._unreadable(error) from error

    def _unreadable(self, error: BaseException) -> DataError:
        return DataError(
            f"{self._file.url} cannot be read: {first_line(error)}",
            "mend the file, or leave it out of the source",
        )
