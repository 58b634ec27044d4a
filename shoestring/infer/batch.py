"""What a stage is given and what it gives back (source: ours)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa


class Batch(Mapping[str, Any]):
    """Items of one call: columns by name, each a NumPy array with one entry an item.

    Numbers without gaps and fixed-size lists of numbers are arrays of their own type (no copy where Arrow has
    none to make); lists of equal length come as [n, length]; all else as objects. `batch.table` is the Arrow
    table underneath.

    Example: `model(batch["pixels"])`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __getitem__(self, name: str) -> Any:
        if name not in self.table.schema.names:
            raise KeyError(f"no column {name!r}; there are: {', '.join(self.table.schema.names)}")
        return as_numpy(self.table.column(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.table.schema.names)

    def __len__(self) -> int:
        """Items, not columns."""
        return int(self.table.num_rows)


@dataclass(frozen=True)
class Answer:
    """What a stage makes of a batch.

    Attributes:
        columns: name -> values (array, list or Arrow array), one entry an item that comes out.
        counts: how many items come out of each item that went in; None: one each.
        errors: place of an item that went in -> what is wrong with it. With `counts` None its entries in
            `columns` are passed over; with counts it must have none.
    """

    columns: Mapping[str, Any]
    counts: Sequence[int] | None = None
    errors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StageContext:
    """What a stage may want to know before its first batch.

    Attributes:
        name: the stage's.
        device: `cpu`, `cuda:0` and so on.
        device_share: part of that device's memory that is this process's.
        threads: for compute.
        seed: of the job.
    """

    name: str
    device: str = "cpu"
    device_share: float = 1.0
    threads: int = 1
    seed: int = 0


class Stage(Protocol):
    """A stage. Two more methods are called where there are some: `setup(context)` once, before the first
    batch, in the process that computes; `close()` at its end."""

    def __call__(self, batch: Batch) -> Answer | Mapping[str, Any] | pa.Table:
        """Columns (one entry an item), or an `Answer`."""
        ...


@runtime_checkable
class StreamStage(Protocol):
    """A stage that works on many batches at a time: sequences that are through make room for others.

    It has no `__call__`. `take` may be called while earlier batches are not through yet; `work` goes on with
    all of them for a bounded time (one token, say) and returns those that are.
    """

    @property
    def room(self) -> int:
        """Items that it would take now."""
        ...

    def take(self, ticket: int, batch: Batch) -> None:
        """Begin with a batch, which is called `ticket`."""
        ...

    def work(self) -> list[tuple[int, Answer]]:
        """Go on; (ticket, answer) of each batch that is through."""
        ...


def as_numpy(column: pa.ChunkedArray | pa.Array) -> Any:
    """A column as NumPy has it; see `Batch`."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        array = pa.array([], array.type)
    kind = array.type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if numbers:
        return array.to_numpy(zero_copy_only=False)
    if (shaped := _as_matrix(array)) is not None:
        return shaped
    values = np.empty(len(array), dtype=object)
    values[:] = array.to_pylist()
    return values


def _as_matrix(array: pa.Array) -> Any:
    """Lists of numbers that are all as long as each other, [n, length], and so for lists of lists; None where
    they are not."""
    if isinstance(array, pa.ExtensionArray):
        shaped = isinstance(array.type, pa.FixedShapeTensorType) and not array.null_count
        return array.to_numpy_ndarray() if shaped else None
    shape = [len(array)]
    while _is_list(array.type):
        length = _length_of_all(array)
        if length is None:
            return None
        shape.append(length)
        array = array.flatten()
    kind = array.type
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if len(shape) == 1 or not numbers or array.null_count:
        return None
    return array.to_numpy(zero_copy_only=False).reshape(shape)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _length_of_all(array: pa.Array) -> int | None:
    """How long each list is; None where they differ, or where there is none to tell."""
    if not len(array) or array.null_count:
        return None
    if pa.types.is_fixed_size_list(array.type):
        return int(array.type.list_size)
    steps = np.diff(array.offsets.to_numpy(zero_copy_only=False))
    return int(steps[0]) if (steps == steps[0]).all() else None
