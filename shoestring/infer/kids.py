"""Child processes as the crew sees them, and real ones: nothing here waits for a child (source: ours)."""

from __future__ import annotations

import select
import selectors
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from shoestring.base.errors import FleetError, InferError, TransportError
from shoestring.fleet.frames import FrameReader, pack_frame
from shoestring.infer import nursery as nest
from shoestring.infer import telling
from shoestring.infer.births import LOAD, STAGE, WRITE
from shoestring.infer.talk import FRAME_LIMIT_BYTES
from shoestring.infer.wire import Orders, Replies

_READ_BYTES = 1 << 18
_DECODER: msgspec.msgpack.Decoder[Replies] = msgspec.msgpack.Decoder(Replies)


@dataclass(frozen=True)
class KidEnd:
    """How a child process ended: exit code (-N: signal N), and its last words or the tail of its log."""

    code: int
    words: str


class Kid(Protocol):
    """A child process, from outside."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def send(self, order: Orders) -> None:
        """Give it an order. One that has ended ignores it."""
        ...

    def receive(self) -> tuple[list[Replies], KidEnd | None]:
        """What it has said since, and how it ended, if it did: then nothing more comes. Never waits."""
        ...

    def stop(self) -> None:
        """Ask it to end; it has nothing to do."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


class Kids(Protocol):
    """Who makes child processes, and waits for them."""

    def start(self, pool: str, device: str) -> Kid:
        """A new one.

        Raises:
            FleetError: there can be none.
        """
        ...

    def wait(self, kids: list[Kid], timeout_s: float) -> list[Kid]:
        """Those of `kids` that have said something or ended, once there is one or the time is over."""
        ...

    def memory_bytes(self, pid: int) -> int:
        """Of a process's own, without what it shares; 0: not known."""
        ...

    def close(self) -> None:
        """End all that are left, at once."""
        ...


@dataclass(frozen=True)
class Outfit:
    """What a pool's processes are given: the part of a GPU, and threads."""

    device_share: float = 1.0
    threads: int = 1


class NurseryKids:
    """Children of a nursery, and one selector for all of them.

    Args:
        nursery: whose children they are; closed by `close`.
        outfits: by pool.

    Raises (`start`, `wait`, `receive` of its children):
        InferError: the nursery has ended, and all children with it.
    """

    def __init__(self, nursery: nest.Nursery, outfits: Mapping[str, Outfit]) -> None:
        self._nursery = nursery
        self._outfits = outfits
        self._numbers = dict.fromkeys(outfits, 0)
        self._selector = selectors.DefaultSelector()
        self._selector.register(nursery.pidfd, selectors.EVENT_READ)
        self._kids: dict[int, _Held] = {}

    def start(self, pool: str, device: str) -> Kid:
        """A new child.

        Raises:
            FleetError: the machine has no room for it.
            InferError: as above.
        """
        outfit, number = self._outfits[pool], self._numbers[pool]
        role = pool if pool in (LOAD, WRITE) else STAGE + pool
        self._numbers[pool] += 1
        try:
            born = self._nursery.child(role, number, device or "cpu", outfit.device_share, outfit.threads)
        except FleetError as error:
            self._check_nursery(error)
            raise
        kid = _Held(born, self._nursery, self._selector, self._forget)
        self._kids[kid.key] = kid
        return kid

    def wait(self, kids: list[Kid], timeout_s: float) -> list[Kid]:
        """Those that have said something or ended; what is to be sent is sent meanwhile."""
        heard: list[Kid] = []
        for key, events in self._selector.select(max(0.0, timeout_s)):
            if key.data is None:
                self._check_nursery(None)
                continue
            kid = self._kids[key.data]
            if events & selectors.EVENT_WRITE:
                kid.flush()
            if events & selectors.EVENT_READ:
                heard.append(kid)
        return heard

    def memory_bytes(self, pid: int) -> int:
        """See `telling.memory_bytes`."""
        return telling.memory_bytes(pid)

    def close(self) -> None:
        """End the nursery and all children."""
        for kid in list(self._kids.values()):
            kid.let_go()
        self._selector.close()
        self._nursery.close()

    def _forget(self, key: int) -> None:
        del self._kids[key]

    def _check_nursery(self, error: Exception | None) -> None:
        poll = select.poll()
        poll.register(self._nursery.pidfd, select.POLLIN)
        if poll.poll(0):
            raise InferError(
                "the process that makes this worker's processes has ended",
                "look at its log in the run's logs/",
            ) from error


class _Held:
    """One child: see `Kid`."""

    def __init__(
        self,
        born: nest.Kid,
        nursery: nest.Nursery,
        selector: selectors.BaseSelector,
        forget: Callable[[int], None],
    ) -> None:
        self._born = born
        self._nursery = nursery
        self._selector = selector
        self._forget = forget
        self._reader = FrameReader(FRAME_LIMIT_BYTES)
        self._outbox = bytearray()
        self._silent = False
        self.key = born.pidfd
        born.socket.setblocking(False)
        selector.register(born.socket, selectors.EVENT_READ, self.key)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._born.pid

    def send(self, order: Orders) -> None:
        """As much as fits now; the rest with `flush`."""
        if not self._silent:
            self._outbox += pack_frame(msgspec.msgpack.encode(order))
            self.flush()

    def flush(self) -> None:
        """Send what is waiting, as far as the child takes it: one that is stopped takes nothing."""
        while self._outbox and not self._silent:
            try:
                sent = self._born.socket.send(self._outbox)
            except BlockingIOError:
                break
            except OSError:  # it has ended, which is seen when reading
                self._outbox.clear()
                break
            del self._outbox[:sent]
        if not self._silent:
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
            self._selector.modify(self._born.socket, wanted, self.key)

    def receive(self) -> tuple[list[Replies], KidEnd | None]:
        """What it has said; how it ended, once that is known."""
        replies: list[Replies] = []
        while not self._silent:
            try:
                data = self._born.socket.recv(_READ_BYTES)
            except BlockingIOError:
                return replies, None
            except OSError:
                data = b""
            if not data:
                self._fall_silent()
                break
            try:
                replies += [_DECODER.decode(body) for body in self._reader.feed(data)]
            except (TransportError, msgspec.DecodeError):  # what it says cannot be trusted any more
                self.kill()
                self._fall_silent()
        end = self._nursery.end_of(self.pid)
        if end.code is None:
            return replies, None
        self.let_go()
        return replies, KidEnd(end.code, end.words)

    def stop(self) -> None:
        """It leaves once it has read all."""
        try:
            self._born.socket.shutdown(1)
        except OSError:
            return  # it has ended already

    def kill(self) -> None:
        """SIGKILL."""
        if self._born.pidfd >= 0:
            self._born.kill()

    def let_go(self) -> None:
        """Close what belongs to it."""
        self._selector.unregister(self._born.pidfd if self._silent else self._born.socket)
        self._born.close()
        self._forget(self.key)

    def _fall_silent(self) -> None:
        """Its socket is closed: from now on only its end is waited for."""
        self._selector.unregister(self._born.socket)
        self._selector.register(self._born.pidfd, selectors.EVENT_READ, self.key)
        self._silent = True
