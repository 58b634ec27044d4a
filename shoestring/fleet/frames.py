"""Length-prefixed frames on a stream socket: four bytes of length, then a message (source: ours)."""

from __future__ import annotations

import struct

from shoestring.base.errors import TransportError

_LENGTH = struct.Struct(">I")
FRAME_LIMIT_BYTES = 16 * 1024 * 1024
"""Larger than any message; a longer length is not ours, and must not make us reserve memory."""


def pack_frame(body: bytes) -> bytes:
    """One frame around `body`."""
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts what comes out of a socket into frames.

    Raises (from `feed`):
        TransportError: a frame announces more than `limit_bytes`; the stream cannot be trusted any more.
    """

    def __init__(self, limit_bytes: int = FRAME_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies of the frames that are whole now, in order."""
        held = self._held
        held += data
        bodies, start = [], 0
        while len(held) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, start)
            if length > self._limit_bytes:
                raise TransportError(
                    f"a frame announces {length} bytes, the limit is {self._limit_bytes}",
                    "let only shoestring talk to this socket",
                )
            end = start + _LENGTH.size + length
            if len(held) < end:
                break
            bodies.append(bytes(held[start + _LENGTH.size : end]))
            start = end
        del held[:start]
        return bodies
