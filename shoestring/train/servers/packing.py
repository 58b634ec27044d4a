"""Several tensors as the bytes of one, and back (source: ours)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGN_BYTES = 16


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of what `pack` makes of these."""
    return sum(_room_bytes(tensor) for tensor in tensors)


def pack(tensors: Sequence[Tensor]) -> Tensor:
    """uint8 [packed_bytes], on the CPU; each tensor starts where numbers of any type may."""
    found = torch.empty(packed_bytes(tensors), dtype=torch.uint8)
    unpack(found, tensors, into=False)
    return found


@torch.no_grad()
def unpack(packed: Tensor, tensors: Sequence[Tensor], into: bool = True) -> None:
    """Fill the tensors from their bytes; with `into` false the other way."""
    at = 0
    for tensor in tensors:
        size_bytes = tensor.numel() * tensor.element_size()
        if size_bytes:
            numbers = packed[at : at + size_bytes].view(tensor.dtype).view(tensor.shape)
            if into:
                tensor.copy_(numbers)
            else:
                numbers.copy_(tensor)
        at += _room_bytes(tensor)


def _room_bytes(tensor: Tensor) -> int:
    size_bytes = tensor.numel() * tensor.element_size()
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES
