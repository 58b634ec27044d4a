"""Compressed files as streams: gzip, zstandard (source: ours)."""

from __future__ import annotations

import gzip
import io
from typing import Any, BinaryIO, cast

import zstandard

_CHUNK_BYTES = 1 << 18


def kind_of(name: str) -> tuple[str, str]:
    """`a.jsonl.gz` -> (`.jsonl`, `.gz`); in lower case, empty where there is none."""
    lower = name.lower()
    packed = next((ending for ending in (".gz", ".zst") if lower.endswith(ending)), "")
    plain = lower.removesuffix(packed)
    return plain[plain.rfind(".") :] if "." in plain else "", packed


def unpacked(raw: BinaryIO, packed: str) -> BinaryIO:
    """A stream of what is inside; `packed` as `kind_of` tells it."""
    if packed == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if packed == ".zst":
        return io.BufferedReader(_ZstdStream(raw), _CHUNK_BYTES)
    return raw


class _ZstdStream(io.RawIOBase):
    """Reads zstandard frames one after the other; unlike the package's own reader, it tells a cut-off end."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._leftover() or self._raw.read(_CHUNK_BYTES)
            if not chunk:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("the compressed data ends in the middle")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _leftover(self) -> bytes:
        """Bytes after the end of a frame, where the next one begins."""
        return bytes(self._frame.unused_data) if self._frame is not None and self._frame.eof else b""
