"""The loader's side: rows of the source into shared memory (source: ours)."""

from __future__ import annotations

import pyarrow as pa

from shoestring.data.row_cursors import Cursors
from shoestring.data.row_index import RowIndex, read_rows
from shoestring.infer.shared import Segments
from shoestring.infer.telling import Meter
from shoestring.infer.wire import Load, Loaded


class Loader:
    """Reads ranges of positions.

    Args:
        max_row_bytes: a larger row is an error.
    """

    def __init__(self, index: RowIndex, segments: Segments, max_row_bytes: int, meter: Meter) -> None:
        self._index = index
        self._segments = segments
        self._max_row_bytes = max_row_bytes
        self._meter = meter
        self._cursors = Cursors()

    def do(self, order: Load) -> Loaded:
        """Rows of many small files come as one table, those that cannot be read as nulls with an error.

        Raises:
            MemoryError: the rows do not fit.
        """
        self._meter.start()
        before = self._cursors.beyond_rows
        try:
            table, errors = read_rows(self._index, order.ranges, self._max_row_bytes, self._cursors)
        except BaseException:
            self._cursors.close()  # what it holds may be what there is no room for
            raise
        table = merged(table)
        size_bytes = self._segments.write(order.segment, table)
        beyond = self._cursors.beyond_rows - before
        return Loaded(order.task, table.num_rows, size_bytes, errors, self._meter.cost(), beyond)

    def close(self) -> None:
        """Let go of what is open."""
        self._cursors.close()


def merged(table: pa.Table) -> pa.Table:
    """One chunk a column where there are more: what reads slices of it later pays for each."""
    return table.combine_chunks() if any(one.num_chunks > 1 for one in table.columns) else table
