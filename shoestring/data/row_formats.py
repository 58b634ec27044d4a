"""Rows of files: how many a file has, where reading may begin, and the rows from one number to another.

Parquet, JSON lines, CSV, text by lines, a file as one row; plain, .gz, .zst; any fsspec URL. A row is never
lost for another one's damage: what cannot be read comes out as a row without values, and an error that says
what is wrong with it. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from shoestring.data.packed import kind_of
from shoestring.data.row_basics import TOO_LONG, FileRows, Read, Rows, opened
from shoestring.data.row_cursors import Cursors
from shoestring.data.row_groups import RowGroups
from shoestring.data.row_lines import CsvRows, JsonRows, LineRows, TextRows
from shoestring.data.row_sizes import without_large
from shoestring.data.row_types import JSON_TEXT, cast, plain, settled, widened
from shoestring.data.sources import SourceFile

IMAGE, NAME = "bytes", "name"


class RowFormat(Protocol):
    """One kind of files."""

    def scan(self, file: SourceFile, limit_bytes: int) -> FileRows:
        """Look through a file.

        Args:
            limit_bytes: of a row; a larger one is not kept in memory, and is an error when it is read.

        Raises:
            DataError: it cannot be read at all; the text says why.
        """
        ...

    def read(
        self, file: SourceFile, about: FileRows, start: int, stop: int, schema: pa.Schema, limit_bytes: int
    ) -> Read:
        """Rows [start, stop).

        Raises:
            DataError: the file cannot be read any more.
        """
        ...


def format_of(name: str, cursors: Cursors | None = None) -> RowFormat:
    """By the ending of a file's name; what has none that is known is a row by itself.

    Args:
        cursors: what an earlier read has left.

    Example: `a.csv.gz` is CSV.
    """
    kind, _ = kind_of(name)
    own = cursors or Cursors()
    if kind == ".parquet":
        return ParquetRows(own.groups)
    return _BY_LINES[kind](own.lines) if kind in _BY_LINES else WholeFile()


_BY_LINES: Mapping[str, type[LineRows]] = MappingProxyType({
    ".csv": CsvRows, ".jsonl": JsonRows, ".ndjson": JsonRows,
    ".txt": TextRows, ".text": TextRows, ".log": TextRows,
})  # fmt: skip


class ParquetRows:
    """Row groups are where reading may begin.

    Args:
        groups: what an earlier read has left.
    """

    def __init__(self, groups: RowGroups) -> None:
        self._groups = groups

    def scan(self, file: SourceFile, limit_bytes: int) -> FileRows:
        """See RowFormat."""
        with opened(file) as stream:
            table = pq.ParquetFile(stream)
            about = table.metadata
            cuts, count, largest = [], 0, 0
            for number in range(about.num_row_groups):
                group = about.row_group(number)
                cuts.append((count, number))
                count += group.num_rows
                largest = max(largest, group.total_byte_size // max(1, group.num_rows))
            fields = {one.name: plain(one.type) for one in table.schema_arrow}
        return FileRows(count, tuple(cuts) or ((0, 0),), fields, largest)

    def read(
        self, file: SourceFile, about: FileRows, start: int, stop: int, schema: pa.Schema, limit_bytes: int
    ) -> Read:
        """See RowFormat. Where a row group is damaged, its rows have the columns that can be read."""
        tables: list[pa.Table] = []
        errors: dict[int, str] = {}
        names = [name for name in schema.names if name in about.fields]
        ends = [*(first for first, _ in about.cuts[1:]), about.rows]
        for (first, number), end in zip(about.cuts, ends, strict=True):
            low, high = max(first, start), min(end, stop)
            if low >= high:
                continue
            table, damage = self._groups.read(file, number, names, low - first, high - first)
            table, large = without_large(table, limit_bytes)
            table, unfit = conformed(table, schema)
            tables.append(table)
            bad = unfit | dict.fromkeys(large, TOO_LONG) | damage
            errors |= {low - start + place: error for place, error in bad.items()}
        return pa.concat_tables(tables) if tables else schema.empty_table(), errors


class WholeFile:
    """A file is a row: its name, and its bytes as they are."""

    def scan(self, file: SourceFile, limit_bytes: int) -> FileRows:
        """See RowFormat."""
        return FileRows(1, ((0, 0),), {NAME: pa.string(), IMAGE: pa.binary()}, file.size_bytes)

    def read(
        self, file: SourceFile, about: FileRows, start: int, stop: int, schema: pa.Schema, limit_bytes: int
    ) -> Read:
        """See RowFormat."""
        found = Rows()
        data = b""
        if file.size_bytes <= limit_bytes:
            with fsspec.open(file.url, "rb").open() as raw:
                data = raw.read(limit_bytes + 1)  # a store may not tell sizes
        if max(file.size_bytes, len(data)) > limit_bytes:
            found.add(None, TOO_LONG)
        else:
            found.add({NAME: file.name, IMAGE: data}, "")
        return found.table(schema), found.errors


def conformed(table: pa.Table, schema: pa.Schema) -> tuple[pa.Table, dict[int, str]]:
    """With the columns of a schema: those that are missing are empty, others are cast where nothing is lost.

    Returns:
        The table, and errors by row: a value that its column cannot hold is null there.
    """
    columns: list[pa.ChunkedArray | pa.Array] = []
    errors: dict[int, str] = {}
    for one in schema:
        if one.name not in table.schema.names:
            columns.append(pa.nulls(table.num_rows, one.type))
            continue
        column, bad = cast(table.column(one.name), one.type)
        columns.append(column)
        errors |= {place: f"{one.name}: {error}" for place, error in bad.items()}
    return pa.table(columns, schema=schema), errors


def schema_of(files: list[dict[str, pa.DataType]]) -> pa.Schema:
    """One schema for several files, columns in the order in which they appear."""
    fields: dict[str, pa.DataType] = {}
    for one in files:
        for name, kind in one.items():
            fields[name] = _united(fields[name], kind) if name in fields else kind
    return pa.schema([pa.field(name, settled(kind)) for name, kind in fields.items()])


def _united(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if JSON_TEXT in (one, other):  # for Arrow it is text, which goes together with bytes
        return JSON_TEXT
    try:
        return (
            pa.unify_schemas(
                [pa.schema([("x", one)]), pa.schema([("x", other)])], promote_options="permissive"
            )
            .field("x")
            .type
        )
    except pa.lib.ArrowException:
        return widened(one, other)
