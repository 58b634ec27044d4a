"""What the C library of this process is told about the machine (source: ours)."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep large freed blocks for the next use instead of returning them at once.

    Training frees and asks for the same megabytes at every step; handed back to the system, each page is
    faulted in and zeroed anew, which took more time than the arithmetic of softmax or exp on them.

    Returns:
        Whether the allocator took the advice; False on systems without glibc, where nothing is changed.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    kept = mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
    return bool(kept)
