"""Telling that memory has run out from other errors (source: ours)."""

from __future__ import annotations

import torch

# What torch's CPU allocator and the C++ library say; neither has an error class of its own.
_SAID = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "std::bad_alloc")


def out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory has run out, on a GPU or on the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)


def give_back(device: torch.device) -> None:
    """Hand what torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
