"""How a worker reaches the coordinator, and what a worker process is given (source: ours)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.frames import FrameReader, pack_frame

CALL_TIMEOUT_S = 10.0
_READ_BYTES = 65536


class Channel(Protocol):
    """One caller's line to the coordinator; not for use by two threads at once."""

    def call(self, request: m.Request) -> m.Reply:
        """Send and wait for the answer.

        Raises:
            TransportError: it did not get through, or its answer did not; it may be sent again.
        """
        ...

    def close(self) -> None:
        """Let go of the line."""
        ...


class Answerer(Protocol):
    """The side of the coordinator that transports see."""

    @property
    def calm(self) -> bool:
        """Whether ticks may be rare: a round is at work and nothing is about to change."""
        ...

    def handle(self, now: float, request: m.Request) -> m.Reply:
        """Answer one request."""
        ...

    def tick(self, now: float) -> None:
        """What happens by itself."""
        ...

    def flush(self) -> None:
        """Make everything handled so far durable; answers may leave after that, not before."""
        ...


class DirectChannel:
    """Calls a coordinator of the same process; `lock` is shared by all channels to it."""

    def __init__(self, coordinator: Answerer, clock: Clock, lock: threading.RLock) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._lock = lock

    def call(self, request: m.Request) -> m.Reply:
        """Answered at once.

        Raises:
            LedgerError: the store cannot be written.
        """
        with self._lock:
            now = self._clock.now()
            reply = self._coordinator.handle(now, request)
            self._coordinator.tick(now)
            self._coordinator.flush()
            return reply

    def close(self) -> None:
        """Nothing to let go of."""


class UnixChannel:
    """A blocking Unix socket; connects at the first call, and again at the call after an error.

    Args:
        path: the coordinator's socket.
        timeout_s: silence that long within a call is an error.
    """

    def __init__(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._reader = FrameReader()

    def call(self, request: m.Request) -> m.Reply:
        """One request, one answer.

        Raises:
            TransportError: the connection could not be made or broke, or nothing came within the
                time-out. The connection is given up then, so that a late answer is never taken
                for the answer to a later request.
        """
        try:
            line = self._connected()
            line.sendall(pack_frame(m.encode(request)))
            return self._answer(line)
        except (OSError, msgspec.DecodeError, TransportError) as error:
            self.close()
            raise TransportError(
                f"{type(request).__name__} got no answer through {self._path}: {error}",
                "send it again; if it stays so, look into the run's log directory",
            ) from error

    def close(self) -> None:
        """Close the connection, if any."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket = line
            self._reader = FrameReader()
            line.settimeout(self._timeout_s)
            line.connect(str(self._path))
        return self._socket

    def _answer(self, line: socket.socket) -> m.Reply:
        while True:
            data = line.recv(_READ_BYTES)
            if not data:
                raise OSError("the coordinator closed the connection")
            if frames := self._reader.feed(data):
                return m.decode_reply(frames[0])


@dataclass(frozen=True)
class WorkerContext:
    """All that a worker process is given.

    Attributes:
        name, incarnation: who this process is.
        open_channel: makes a channel to the coordinator; one for each thread.
        clock: where its time comes from.
        config: heartbeats, time-outs.
        run_dir: the run's directory.
        payload: the job's own description (JSON or msgpack, never a pickle).
        host: the address at which the other workers reach this one.
        device: `cpu` or `cuda`; `device_index` counts the devices of this host.
        threads: compute threads that this worker may use; 0: as many as the machine has.
    """

    name: str
    incarnation: int
    open_channel: Callable[[], Channel]
    clock: Clock
    config: MemberConfig
    run_dir: Path
    payload: bytes
    host: str = "127.0.0.1"
    device: str = "cpu"
    device_index: int = 0
    threads: int = 1


WorkerMain = Callable[[WorkerContext], None]
"""A worker's entry point: a function of a module (`module:name` finds it again in a new process).
It returns when the coordinator said Stop or Dismissed, and raises on anything else."""
