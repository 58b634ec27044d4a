"""Flat shards as tensors that torch.distributed.checkpoint can write and read under any layout (source:
ours).

A range of a flattened tensor is no box; it is a handful of boxes: the rest of a row, whole rows, the start
of a row, and so for every dimension. At most 2 d - 1 for d dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], tuple[int, ...], int]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Elements [start, stop) of a flattened tensor as boxes: (offsets, sizes, first flat element), in
    order."""
    if stop <= start:
        return
    if not shape:
        yield (), (), start
        return
    inner = math.prod(shape[1:])
    first, last = start // inner, (stop - 1) // inner
    if len(shape) == 1:
        yield (start,), (stop - start,), start
        return
    low = first
    if start % inner:
        yield from _inside(shape, first, start, min(stop, (first + 1) * inner))
        low = first + 1
    whole = stop // inner
    if whole > low:
        rest = (0,) * (len(shape) - 1)
        yield (low, *rest), (whole - low, *shape[1:]), low * inner
    if stop % inner and last >= low:
        yield from _inside(shape, last, max(start, last * inner), stop)


def _inside(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    base = row * math.prod(shape[1:])
    for offsets, sizes, at in boxes(shape[1:], start - base, stop - base):
        yield (row, *offsets), (1, *sizes), at + base


def copy_of(tensor: Tensor) -> Tensor:
    """A tensor or piece of the same numbers, in memory of its own."""
    if isinstance(tensor, PieceTensor):
        return PieceTensor(tensor.local.detach().clone(), tensor.shape, tensor.start)
    return tensor.detach().clone()


class PieceTensor(Tensor):
    """A tensor of which this rank holds elements [start, stop) of its flattened form.

    It can only be saved and loaded. Implements the protocol by which torch.distributed.checkpoint asks
    DTensors.

    Args:
        local: [stop - start], contiguous; filled in place when loaded.
        shape: of the whole.
        start: first element held.
    """

    local: Tensor
    start: int

    @staticmethod
    def __new__(cls, local: Tensor, shape: torch.Size, start: int) -> PieceTensor:
        """A wrapper without storage of its own."""
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=local.dtype, device=local.device)
        made.local, made.start = local, start
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuses: arithmetic would need the whole."""
        raise NotImplementedError(f"{function} on a piece of a tensor: gather it first")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Says what is held."""
        return f"PieceTensor({tuple(self.shape)}, elements {self.start}..{self.start + self.local.numel()})"

    def _boxes(self) -> list[Box]:
        return list(boxes(tuple(self.shape), self.start, self.start + self.local.numel()))

    def __create_write_items__(self, fqn: str, obj: Any) -> list[WriteItem]:
        """One item a box."""
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
                    properties=TensorProperties.create_from_tensor(self.local),
                    size=self.shape,
                ),
            )
            for offsets, sizes, _ in self._boxes()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """One chunk a box."""
        return [
            ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            for offsets, sizes, _ in self._boxes()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The box that begins at these offsets, as a view."""
        for offsets, sizes, at in self._boxes():
            if index.offset is not None and tuple(index.offset) == offsets:
                first = at - self.start
                return self.local[first : first + math.prod(sizes)].view(sizes)
        raise ValueError(f"{index.fqn}: no box begins at {index.offset}")
