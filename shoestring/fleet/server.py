"""The coordinator's process: one thread, one loop, one durable commit a turn (source: ours).

A turn reads what has arrived on all connections, lets the coordinator handle it, makes all of it
durable in one transaction, and only then sends the answers: group commit comes by itself as load
grows. The listening socket is made by the supervisor and outlives coordinators, so that callers
of one that is away wait in the socket's queue instead of being refused.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import ShoestringError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.channel import Answerer
from shoestring.fleet.frames import FrameReader, pack_frame

TICK_S = 0.02
CALM_TICK_S = 0.2
GATHER_SHARE = 0.5
GATHER_MAX_S = 0.002
_READ_BYTES = 262144
_UNSENT_LIMIT_BYTES = 64 * 1024 * 1024


class Faults(Protocol):
    """Where the server notes what callers did wrong: the run record."""

    def append(self, kind: str, **fields: object) -> object:
        """Record one event."""
        ...


@dataclass(eq=False)
class Line:
    """One accepted connection."""

    socket: socket.socket
    reader: FrameReader = field(default_factory=FrameReader)
    unsent: bytearray = field(default_factory=bytearray)


class Server:
    """Serves a coordinator on a listening socket until told to stop.

    Args:
        coordinator: who answers.
        listener: a bound, listening stream socket.
        clock: the time that the coordinator is told.
        faults: where malformed frames are recorded.
    """

    def __init__(self, coordinator: Answerer, listener: socket.socket, clock: Clock, faults: Faults) -> None:
        self._coordinator = coordinator
        self._listener = listener
        self._clock = clock
        self._faults = faults
        self._selector = selectors.DefaultSelector()
        self._arrived: list[tuple[Line, m.Request]] = []
        self._lines: set[Line] = set()
        self._next_tick_s = clock.now()
        self._expected = 0
        self._flush_s = 0.0
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def serve(self, over: Callable[[], bool]) -> None:
        """Loop until `over()`; what was handled is durable on return.

        Raises:
            LedgerError: the store cannot be written. No answer of that turn has left.
        """
        while not over():
            self.turn()
        self._coordinator.flush()

    def turn(self) -> None:
        """Read, handle, commit, answer; waits for the next tick at most.

        Raises:
            LedgerError: as above.
        """
        self._poll(max(0.0, self._next_tick_s - self._clock.now()))
        self._gather()
        now = self._clock.now()
        answers = [(line, self._coordinator.handle(now, request)) for line, request in self._arrived]
        self._arrived.clear()
        ticked = now >= self._next_tick_s
        if ticked:
            self._coordinator.tick(now)
            self._next_tick_s = now + CALM_TICK_S
        if not self._coordinator.calm:
            self._next_tick_s = min(self._next_tick_s, now + TICK_S)
        if answers or ticked:
            self._coordinator.flush()
            self._flush_s = self._clock.now() - now
        for line, reply in answers:
            self._send(line, pack_frame(m.encode(reply)))
        self._expected = max(len(answers), self._expected * 9 // 10)

    def close(self) -> None:
        """Close all connections; the listener belongs to who made it."""
        for line in list(self._lines):
            self._drop(line)
        self._selector.close()

    def _gather(self) -> None:
        """Let those who were just answered ask again before this turn's commit is paid for.

        As many as asked together lately are worth a short wait, bounded by a part of what a commit
        costs; a lone caller, or callers that come together, never wait.
        """
        until_s = self._clock.now() + min(GATHER_SHARE * self._flush_s, GATHER_MAX_S)
        while 0 < len(self._arrived) < self._expected:
            left_s = until_s - self._clock.now()
            if left_s <= 0:
                return
            self._poll(left_s)

    def _poll(self, wait_s: float) -> None:
        for key, mask in self._selector.select(wait_s):
            if isinstance(key.data, Line):
                self._ready(key.data, mask)
            else:
                key.data()

    # --- connections -------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except BlockingIOError:
                return
            accepted.setblocking(False)
            line = Line(accepted)
            self._lines.add(line)
            self._selector.register(accepted, selectors.EVENT_READ, line)

    def _ready(self, line: Line, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._send(line, b"")
        if mask & selectors.EVENT_READ and line in self._lines:
            self._read(line)

    def _read(self, line: Line) -> None:
        try:
            data = line.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(line)
            return
        try:
            for body in line.reader.feed(data):
                self._arrived.append((line, m.decode_request(body)))
        except (TransportError, msgspec.DecodeError) as error:
            what = error.what if isinstance(error, TransportError) else str(error)
            self._faults.append("fault", reason=f"a malformed message; its connection is closed: {what}")
            self._drop(line)

    def _send(self, line: Line, data: bytes) -> None:
        if line not in self._lines:
            return  # the caller went away; it asks again on a new connection
        line.unsent += data
        try:
            sent = line.socket.send(line.unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(line)
            return
        del line.unsent[:sent]
        if len(line.unsent) > _UNSENT_LIMIT_BYTES:
            self._drop(line)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if line.unsent else 0)
        if self._selector.get_key(line.socket).events != events:
            self._selector.modify(line.socket, events, line)

    def _drop(self, line: Line) -> None:
        if line in self._lines:
            self._lines.discard(line)
            self._selector.unregister(line.socket)
            line.socket.close()


class LastWords(msgspec.Struct, frozen=True):
    """What a process that ends with an error tells the supervisor through its pipe."""

    what: str
    todo: str
    fatal: bool


def run_coordinator(
    make: Callable[[], tuple[Answerer, Faults]], listener: socket.socket, clock: Clock, words_fd: int
) -> int:
    """The body of the coordinator's process; returns its exit code.

    SIGTERM ends it in order. An error of the coordinator itself goes through the pipe `words_fd`,
    which works on a full disk too; a restart would not mend it.
    """
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    try:
        coordinator, faults = make()
        server = Server(coordinator, listener, clock, faults)
        try:
            server.serve(lambda: bool(stopped))
        finally:
            server.close()
    except ShoestringError as error:
        os.write(words_fd, msgspec.json.encode(LastWords(error.what, error.todo, fatal=True)))
        return error.exit_code
    return 0
