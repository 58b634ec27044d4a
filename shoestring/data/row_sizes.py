"""How many bytes the rows of a table have (source: ours)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def without_large(table: pa.Table, limit_bytes: int) -> tuple[pa.Table, list[int]]:
    """The same rows, but those of more than `limit_bytes` without values, and which they are."""
    if table.nbytes <= limit_bytes:  # so is each of its rows
        return table, []
    sizes = sum((_column(column) for column in table.columns), np.zeros(table.num_rows, np.int64))
    large = [int(row) for row in np.flatnonzero(sizes > limit_bytes)]
    if not large:
        return table, []
    names = table.column_names
    table = pa.table(table.columns, names=names)  # columns that said they hold no null may now
    nothing = pa.table([pa.nulls(1, one.type) for one in table.schema], names=names)
    parts, begin = [], 0
    for row in large:
        parts += [table.slice(begin, row - begin), nothing]
        begin = row + 1
    return pa.concat_tables([*parts, table.slice(begin)]), large


def _column(column: pa.ChunkedArray) -> Any:
    return np.concatenate([np.zeros(0, np.int64), *(sizes_of(chunk) for chunk in column.chunks)])


def sizes_of(values: pa.Array) -> Any:
    """Bytes of each value, without what says how long it is: [len(values)], int64; 0 for null."""
    kind, count = values.type, len(values)
    if isinstance(values, pa.ExtensionArray):
        return sizes_of(values.storage)
    if pa.types.is_dictionary(kind):
        words = np.append(sizes_of(values.dictionary), 0)  # the last: of null
        return words[pc.fill_null(values.indices.cast(pa.int64()), len(words) - 1).to_numpy()]
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        values = values.cast(pa.large_binary())
        kind = values.type
    if _has_length(kind):
        return pc.fill_null(pc.binary_length(values).cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(kind):
        return sum((sizes_of(one) for one in values.flatten()), np.zeros(count, np.int64))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _spans(values, sizes_of(values.values))
    if pa.types.is_map(kind):
        return _spans(values, sizes_of(values.keys) + sizes_of(values.items))
    if pa.types.is_fixed_size_list(kind):
        inner = values.values.slice(values.offset * kind.list_size, count * kind.list_size)
        return sizes_of(inner).reshape(count, kind.list_size).sum(axis=1)
    try:
        return np.full(count, -(-kind.bit_width // 8), np.int64)
    except ValueError:  # a type without a width, as of nothing
        return np.zeros(count, np.int64)


def _has_length(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
    )


def _spans(lists: Any, inner: Any) -> Any:
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(inner, dtype=np.int64)])
    return np.diff(ends[lists.offsets.to_numpy()])
