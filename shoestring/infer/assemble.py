"""A shard's rows put together from what its stages made, in order (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoestring.base.errors import InferError
from shoestring.data.output_state import Ranges
from shoestring.data.row_index import RowIndex
from shoestring.infer.config import ROWS
from shoestring.infer.graph import ERROR, IDENTITY, Graph
from shoestring.infer.levels import Array, Level, owners, rows_level, rows_of, stage_level
from shoestring.infer.schemas import emits_many, input_names, output_schema
from shoestring.infer.wire import Write

SLAB_BYTES = 64 << 20
SLAB_ROWS = 1 << 18
"""Rows are put together in slabs of at most that much, so that a large shard needs no more memory."""
_FEW = 64
"""Rows of one file below which making identities one by one is quicker."""
Read = Callable[[str], pa.Table]


class Shard:
    """One shard, to be written.

    Args:
        graph: the job's stages.
        index: of all rows.
        schemas: stage -> its item schema.
        columns: of the sink's settings.
        order: chunks and pieces.
        read: segment -> its table.

    Raises:
        InferError: what came does not fit together: a row is there twice, or not at all.
    """

    def __init__(
        self,
        graph: Graph,
        index: RowIndex,
        schemas: Mapping[str, pa.Schema],
        columns: Sequence[str],
        order: Write,
        read: Read,
    ) -> None:
        self.schema = output_schema(graph, schemas, columns)
        self._graph = graph
        self._index = index
        self._order = order
        self._levels = {ROWS: rows_level(order.ranges, order.chunks)}
        for name, node in graph.nodes.items():
            pieces = order.pieces[name] if name in order.pieces else ()
            self._levels[name] = stage_level(
                self._levels[node.parent], pieces, emits_many(schemas[name]), name
            )
        self.rows = self._levels[ROWS].parents
        self._many = {name for name in graph.nodes if emits_many(schemas[name])}
        wanted = set(self.schema.names)
        source = [
            pa.field(name, one.type)
            for name, one in zip(input_names(index.schema), index.schema, strict=True)
            if name in wanted
        ]
        self._tables = {ROWS: self._table(ROWS, source, read)}
        for name in graph.kept:
            own = [one for one in schemas[name] if one.name in wanted]
            self._tables[name] = self._table(name, own, read)
        self._error_rows, self._error_texts = self._errors()
        self._check_all_there()

    def slabs(self, slab_bytes: int = SLAB_BYTES, slab_rows: int = SLAB_ROWS) -> Iterator[pa.Table]:
        """The rows in order, as tables of the output's schema."""
        held_bytes = sum(one.nbytes for one in self._tables.values())
        step = max(1, min(slab_rows, self.rows * slab_bytes // max(1, held_bytes)))
        for start in range(0, self.rows, step):
            yield self._slab(start, min(self.rows, start + step))

    # --- one slab ---------------------------------------------------------------------------------

    def _slab(self, start: int, stop: int) -> pa.Table:
        found: dict[str, Any] = {
            IDENTITY: identities(self._index, self._order.ranges, start, stop),
            ERROR: self._error_column(start, stop),
        }
        for name, table in self._tables.items():
            for column, array in self._columns(name, table, start, stop):
                found[column] = array
        arrays = [
            found[one.name] if found[one.name].type.equals(one.type) else found[one.name].cast(one.type)
            for one in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def _columns(self, name: str, table: pa.Table, start: int, stop: int) -> Iterator[tuple[str, Any]]:
        """A level's own columns for rows [start, stop)."""
        names = [ROWS] if name == ROWS else [ROWS, *self._graph.path(name)]
        bounds = [(start, stop)]
        for one in names:
            offsets = self._levels[one].offsets
            bounds.append((int(offsets[bounds[-1][0]]), int(offsets[bounds[-1][1]])))
        first, last = bounds[-1]
        own = table.slice(first, last - first)
        for column in table.column_names:
            array = own.column(column)
            for place in range(len(names) - 1, -1, -1):
                array = self._up(names[place], array, *bounds[place])
            yield column, array

    def _up(self, name: str, array: Any, start: int, stop: int) -> Any:
        """Values of a level's items as values of parents [start, stop): null where there is none."""
        level = self._levels[name]
        counts = level.counts[start:stop]
        first, last = np.searchsorted(level.failed, [start, stop])
        failed = level.failed[first:last] - start
        if name in self._many:
            offsets = (level.offsets[start : stop + 1] - level.offsets[start]).astype(np.int32)
            none = ~level.covered[start:stop]
            none[failed] = True
            mask = pa.array(none) if none.any() else None
            return pa.ListArray.from_arrays(pa.array(offsets), _whole(array), mask=mask)
        if not len(failed) and (counts == 1).all():
            return array
        none = counts == 0
        none[failed] = True
        places = level.offsets[start:stop] - level.offsets[start]
        return _whole(array).take(pa.array(places, mask=none))

    def _error_column(self, start: int, stop: int) -> Any:
        first, last = np.searchsorted(self._error_rows, [start, stop])
        if first == last:
            return pa.nulls(stop - start, pa.string())
        places, none = np.zeros(stop - start, np.int64), np.ones(stop - start, bool)
        rows = self._error_rows[first:last] - start
        places[rows], none[rows] = np.arange(last - first), False
        return pa.array(self._error_texts[first:last], pa.string()).take(pa.array(places, mask=none))

    # --- all of it ----------------------------------------------------------------------------------

    def _table(self, name: str, fields: Sequence[pa.Field], read: Read) -> pa.Table:
        """What came out of a level, as views of its segments, in these columns and types."""
        schema = pa.schema(fields)
        if not fields:
            return schema.empty_table()
        names = self._index.schema.names if name == ROWS else schema.names
        if name == ROWS:
            called = dict(zip(input_names(self._index.schema), names, strict=True))
            names = [called[one] for one in schema.names]
        held: dict[str, pa.Table] = {}
        slices = []
        for segment, start, stop in self._levels[name].runs:
            if segment not in held:
                held[segment] = _own(read(segment), names, schema)
            table = held[segment]
            slices.append(table if stop - start == len(table) else table.slice(start, stop - start))
        return pa.concat_tables(slices) if slices else schema.empty_table()

    def _errors(self) -> tuple[Array, list[str]]:
        """Rows with an error, ascending, and its text: of reading, else of the first stage that has one."""
        found = dict(self._levels[ROWS].errors)
        for position, row in rows_of(self._order.ranges, self._order.verdicts):
            found.setdefault(row, self._order.verdicts[position])
        for name in self._graph.nodes:
            level = self._levels[name]
            if not level.errors:
                continue
            rows, numbers = owners(self._above(name), level.failed)
            for at, (row, text) in enumerate(zip(rows.tolist(), level.errors.values(), strict=True)):
                item = ".".join(str(one[at]) for one in numbers)
                found.setdefault(row, f"{name}, item {item}: {text}" if item else f"{name}: {text}")
        rows = np.array(sorted(found), np.int64)
        return rows, [found[row] for row in rows.tolist()]

    def _check_all_there(self) -> None:
        """A row without an error went through every stage: else something was lost unseen."""
        for name, level in self._levels.items():
            lost = ~level.covered
            if name not in self._many:
                lost |= level.counts == 0
            if not lost.any():
                continue
            places = np.flatnonzero(lost)
            rows = places if name == ROWS else owners(self._above(name), places)[0]
            missing = rows[~np.isin(rows, self._error_rows)]
            if len(missing):
                what = "was not read" if name == ROWS else f"did not go through stage {name}"
                raise InferError(
                    f"row {int(missing[0])} of a shard {what}, and has no error",
                    "this is a bug in shoestring: tell its makers",
                )

    def _above(self, name: str) -> list[tuple[Level, bool]]:
        """Levels from the source to a stage's parent."""
        names = [ROWS, *self._graph.path(name)[:-1]]
        return [(self._levels[one], one in self._many) for one in names]


def identities(index: RowIndex, ranges: Ranges, start: int, stop: int) -> pa.Array:
    """`FILE#NUMBER` of rows [start, stop) of a shard: as RowIndex.identities, but made in one go a file."""
    parts: list[pa.Array] = []
    few: list[str] = []
    for low, high in cut(ranges, start, stop):
        for one, first, last in index.parts(low, high):
            if last - first <= _FEW:
                few += [f"{one.file.name}#{row}" for row in range(first, last)]
                continue
            if few:
                parts.append(pa.array(few, pa.string()))
                few = []
            numbers = pa.array(np.arange(first, last)).cast(pa.string())
            parts.append(pc.binary_join_element_wise(one.file.name, numbers, "#"))
    if few or not parts:
        parts.append(pa.array(few, pa.string()))
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def cut(ranges: Ranges, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Positions of rows [start, stop) of a shard, as ranges."""
    first = 0
    for low, high in ranges:
        begin, end = max(start - first, 0), min(stop - first, high - low)
        if begin < end:
            yield low + begin, low + end
        first += high - low


def _own(table: pa.Table, names: list[str], schema: pa.Schema) -> pa.Table:
    """These columns of a segment, called and typed as in `schema`."""
    columns = [table.column(name) for name in names]
    if all(one.type.equals(field.type) for one, field in zip(columns, schema, strict=True)):
        return pa.Table.from_arrays(columns, schema=schema)
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)


def _whole(array: Any) -> Any:
    """One array of what may be chunks."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    if not array.num_chunks:
        return pa.array([], array.type)
    return array.chunk(0) if array.num_chunks == 1 else pa.concat_arrays(array.chunks)
