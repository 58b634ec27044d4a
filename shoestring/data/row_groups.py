"""Row groups of parquet files: what was decoded for some rows is there for those that follow (source: ours).

A row group cannot be entered in its middle: who reads it in many small parts would decode it again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoestring.base.errors import DataError, first_line
from shoestring.data.row_basics import READ_ERRORS, opened
from shoestring.data.sources import SourceFile

KEPT_BYTES = 64 << 20
"""A larger group (as its file counts: not packed) is not kept whole."""
SWOLLEN = 4
"""Nor one that takes so many times that when it is decoded."""
BATCH_BYTES, BATCH_ROWS = 4 << 20, 1 << 16
BUFFER_BYTES = 1 << 20
Part = tuple[pa.Table, dict[int, str]]
"""Some rows, and by place what is wrong with them."""


class RowGroups:
    """The row group that was read last. For one thread.

    A group up to `kept_bytes` is kept as it was decoded. A larger one is decoded a few rows at a time, from
    where it was left; who goes back begins it again.

    Attributes:
        beyond_rows: decoded so far, less those that were handed out: others wait for them, or will not.
    """

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._key: tuple[Any, ...] = ()
        self._held: _Whole | _Flow | None = None
        self._swollen: set[tuple[Any, ...]] = set()
        self.beyond_rows = 0

    def read(self, file: SourceFile, number: int, names: Sequence[str], low: int, high: int) -> Part:
        """Rows [low, high) of a group, counted from its first. Where it is damaged they have the columns that
        can be read.

        Args:
            names: of columns.

        Raises:
            DataError: the file cannot be read.
            MemoryError: what has to be decoded at a time does not fit.
        """
        if not names:
            return pa.table({"": pa.nulls(high - low)}), {}
        for _ in range(2):  # a moment without its store must not cost rows
            try:
                return self._rows(file, number, list(names), low, high), {}
            except MemoryError:
                self.close()
                raise
            except (DataError, *READ_ERRORS):
                self.close()
        return _by_columns(file, number, names, low, high)

    def _rows(self, file: SourceFile, number: int, names: list[str], low: int, high: int) -> pa.Table:
        key = (file.url, file.version, number, *names)
        if self._held is None or key != self._key or not self._held.reaches(low):
            self.close()
            self._held, self._key = self._begin(file, number, names, key), key
            self.beyond_rows += self._held.decoded_rows
        decoded = self._held.decoded_rows
        found = self._held.rows(low, high)
        self.beyond_rows += self._held.decoded_rows - decoded - (high - low)
        return found

    def close(self) -> None:
        """Let go of it."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _begin(self, file: SourceFile, number: int, names: list[str], key: tuple[Any, ...]) -> _Whole | _Flow:
        if key not in self._swollen:
            with opened(file) as stream:
                source = pq.ParquetFile(stream)
                if _size_bytes(source, number, names) <= self._kept_bytes:
                    table = source.read_row_group(number, columns=names)
                    if table.nbytes > SWOLLEN * self._kept_bytes:
                        self._swollen.add(key)  # another time
                    return _Whole(table)
        return _Flow(file, number, names)


class _Whole:
    """All of a group."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.decoded_rows = table.num_rows

    def reaches(self, row: int) -> bool:
        return True

    def rows(self, low: int, high: int) -> pa.Table:
        return self._table.slice(low, high - low)

    def close(self) -> None:
        """Nothing is open."""


class _Flow:
    """A group that is decoded as it is asked for, in batches that always begin at the same rows."""

    def __init__(self, file: SourceFile, number: int, names: list[str]) -> None:
        self.decoded_rows = 0
        self._at = 0  # the row of the group that `_left` begins with
        with ExitStack() as stack:
            # Without a buffer of its own a reader takes all of a column's packed bytes at once.
            source = pq.ParquetFile(stack.enter_context(opened(file)), buffer_size=BUFFER_BYTES)
            about = source.metadata.row_group(number)
            row_bytes = _size_bytes(source, number, names) / max(1, about.num_rows)
            size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, row_bytes))))
            self._batches = source.iter_batches(size, row_groups=[number], columns=names)
            self._left = pa.schema([source.schema_arrow.field(name) for name in names]).empty_table()
            self._open = stack.pop_all()

    def reaches(self, row: int) -> bool:
        return row >= self._at

    def rows(self, low: int, high: int) -> pa.Table:
        parts = [self._left]
        at, stop = self._at, self._at + self._left.num_rows
        while stop < high:
            batch = next(self._batches, None)
            if batch is None:
                raise pa.ArrowInvalid("it ends early")
            if stop <= low:  # none of what came before is wanted
                parts, at = [], stop
            made = pa.Table.from_batches([batch]).select(self._left.column_names)
            parts.append(made)
            self.decoded_rows += made.num_rows
            stop += made.num_rows
        self._left, self._at = pa.concat_tables(parts).slice(low - at), low
        return self._left.slice(0, high - low)

    def close(self) -> None:
        self._open.close()


def _by_columns(file: SourceFile, number: int, names: Sequence[str], low: int, high: int) -> Part:
    """Rows of a damaged group: each column as far as it can be read.

    Raises:
        DataError: there is no way to any of it.
    """
    with opened(file) as stream:
        source = pq.ParquetFile(stream)
        types = {name: source.schema_arrow.field(name).type for name in names}
    columns: dict[str, pa.ChunkedArray] = {}
    errors: dict[int, str] = {}
    for name, kind in types.items():
        found, why = _as_far(file, number, name, high)
        some = found.slice(low, high - low)
        missing = high - low - len(some)
        columns[name] = pa.chunked_array([*some.chunks, pa.nulls(missing, kind)], kind)
        if missing:
            text = f"row group {number} is damaged: {why}"
            errors |= dict.fromkeys(range(len(some), high - low), text)
    return pa.table(columns), errors


def _as_far(file: SourceFile, number: int, name: str, stop: int) -> tuple[pa.ChunkedArray, str]:
    """A column's rows up to `stop`, or up to the batch that cannot be read, and why."""
    parts: list[pa.Array] = []
    with opened(file) as stream:
        source = pq.ParquetFile(stream)
        kind = source.schema_arrow.field(name).type
        try:
            for batch in source.iter_batches(BATCH_ROWS, row_groups=[number], columns=[name]):
                parts.append(batch.column(0))
                if sum(map(len, parts)) >= stop:
                    break
        except READ_ERRORS as error:
            if isinstance(error, MemoryError):
                raise
            return pa.chunked_array(parts, kind), first_line(error)
    return pa.chunked_array(parts, kind), "it ends early"


def _size_bytes(source: pq.ParquetFile, number: int, names: Sequence[str]) -> int:
    """What these columns of a group take unpacked, as the file tells it."""
    group = source.metadata.row_group(number)
    columns = (group.column(place) for place in range(group.num_columns))
    return sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] in names)
