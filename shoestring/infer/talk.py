"""Frames between the engine and one child, in both directions (source: ours)."""

from __future__ import annotations

import select
import socket
from typing import Generic, TypeVar

import msgspec

from shoestring.fleet.frames import FrameReader, pack_frame

T = TypeVar("T")
FRAME_LIMIT_BYTES = 1 << 30
"""A shard's pieces carry a count for every item, so these frames are larger than those of the fleet."""
_READ_BYTES = 1 << 18


class Gone(Exception):
    """The other side has closed its end, or died."""


class Line(Generic[T]):
    """One end; `decoder` knows what comes in.

    Sending never waits for ever: what comes in meanwhile is taken in, so two sides that send at the same time
    do not block each other.
    """

    def __init__(self, end: socket.socket, decoder: msgspec.msgpack.Decoder[T]) -> None:
        self._end = end
        self._reader = FrameReader(FRAME_LIMIT_BYTES)
        self._decoder = decoder
        self._ready: list[T] = []
        self._over = False
        end.setblocking(False)

    def send(self, message: msgspec.Struct) -> None:
        """All of it.

        Raises:
            Gone: nobody is there any more.
        """
        data = memoryview(pack_frame(msgspec.msgpack.encode(message)))
        while data:
            # One that has nothing more to say may still listen.
            found = self._wait(select.POLLOUT if self._over else select.POLLIN | select.POLLOUT, None)
            if not self._over and found & ~select.POLLOUT:
                self._take_in()
            if found & (select.POLLOUT | select.POLLERR):
                try:
                    data = data[self._end.send(data) :]
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise Gone from error

    def receive(self, wait_s: float | None) -> list[T]:
        """What has come in, in order; waits for the first (None: as long as it takes).

        Raises:
            Gone: nobody is there any more, and all that came before was given out.
        """
        if not self._ready and not self._over and self._wait(select.POLLIN, wait_s):
            self._take_in()
        if not self._ready and self._over:
            raise Gone
        ready, self._ready = self._ready, []
        return ready

    def close(self) -> None:
        """Let go of the socket."""
        self._end.close()

    def _wait(self, events: int, wait_s: float | None) -> int:
        poll = select.poll()  # not `select`, which knows only 1024 descriptors
        poll.register(self._end, events)
        found = poll.poll(None if wait_s is None else wait_s * 1000)
        return found[0][1] if found else 0

    def _take_in(self) -> None:
        try:
            data = self._end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over = True
            return
        self._ready += [self._decoder.decode(body) for body in self._reader.feed(data)]
