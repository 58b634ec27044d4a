"""Row groups of parquet files: what was decoded for some rows is there for those that follow (source: ours).

A row group cannot be entered in its middle: who reads it in many small parts would decode it again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoestring.base.errors import first_line
from shoestring.data.row_basics import READ_ERRORS, opened
from shoestring.data.sources import SourceFile

KEPT_BYTES = 64 << 20
"""A larger group (as its file counts: not packed) is not kept whole."""
BATCH_BYTES, BATCH_ROWS = 4 << 20, 1 << 16
Part = tuple[pa.Table, str]
"""Some rows, and what is wrong with them all."""


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
        self.beyond_rows = 0

    def read(self, file: SourceFile, number: int, names: Sequence[str], low: int, high: int) -> Part:
        """Rows [low, high) of a group, counted from its first.

        Args:
            names: of columns.

        Raises:
            DataError: the file cannot be read.
        """
        key = (file.url, file.version, number, *names)
        if self._held is None or key != self._key or not self._held.reaches(low):
            self.close()
            self._held, self._key = self._begin(file, number, list(names)), key
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

    def _begin(self, file: SourceFile, number: int, names: list[str]) -> _Whole | _Flow:
        with ExitStack() as stack:
            source = pq.ParquetFile(stack.enter_context(opened(file)))
            if source.metadata.row_group(number).total_byte_size <= self._kept_bytes:
                return _Whole(*_whole(source, number, names))
            return _Flow(source, number, names, stack.pop_all())


class _Whole:
    """All of a group."""

    def __init__(self, table: pa.Table, damage: str) -> None:
        self._table, self._damage = table, damage
        self.decoded_rows = table.num_rows

    def reaches(self, row: int) -> bool:
        return True

    def rows(self, low: int, high: int) -> Part:
        return self._table.slice(low, high - low), self._damage

    def close(self) -> None:
        """Nothing is open."""


class _Flow:
    """A group that is decoded as it is asked for."""

    def __init__(self, source: pq.ParquetFile, number: int, names: list[str], open_: ExitStack) -> None:
        about = source.metadata.row_group(number)
        row_bytes = about.total_byte_size / max(1, about.num_rows)
        size = max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, row_bytes))))
        self._schema = pa.schema([source.schema_arrow.field(name) for name in names])
        self._batches = source.iter_batches(size, row_groups=[number], columns=names)
        self._number = number
        self._open = open_
        self._left = self._schema.empty_table()
        self.decoded_rows = 0
        self._at = 0  # the row of the group that `_left` begins with
        self._broken = ""

    def reaches(self, row: int) -> bool:
        return row >= self._at

    def rows(self, low: int, high: int) -> Part:
        try:
            while not self._broken and self._at + self._left.num_rows < high:
                self._go_on(low)
        except READ_ERRORS as error:
            self._broken = f"row group {self._number} is damaged: {first_line(error)}"
        if self._broken:  # nothing of a batch is decoded where it is damaged
            columns = [pa.nulls(high - low, one.type) for one in self._schema]
            return pa.table(columns, schema=self._schema), self._broken
        self._left, self._at = self._left.slice(low - self._at), low
        return self._left.slice(0, high - low), ""

    def _go_on(self, low: int) -> None:
        """Another batch; rows before `low` are not kept."""
        batch = next(self._batches, None)
        if batch is None:
            raise pa.ArrowInvalid("it ends early")
        made = pa.Table.from_batches([batch]).select(self._schema.names)
        self.decoded_rows += made.num_rows
        gone = min(self._left.num_rows, max(0, low - self._at))
        self._left = pa.concat_tables([self._left.slice(gone), made]) if gone < self._left.num_rows else made
        self._at += gone

    def close(self) -> None:
        self._open.close()


def _whole(source: pq.ParquetFile, number: int, names: list[str]) -> Part:
    """A group; where it is damaged, it has the columns that can be read."""
    try:
        return source.read_row_group(number, columns=names), ""
    except READ_ERRORS as error:
        damage = f"row group {number} is damaged: {first_line(error)}"
    count = source.metadata.row_group(number).num_rows
    columns: dict[str, pa.Array] = {}
    for name in names:
        try:
            columns[name] = source.read_row_group(number, columns=[name]).column(0)
        except READ_ERRORS:
            columns[name] = pa.nulls(count, source.schema_arrow.field(name).type)
    return pa.table(columns), damage
