"""Runs a schedule over gloo: receives are posted ahead; who completes a chunk sends it on (source: ours)."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from shoestring.parallel.group import PeerLostError, peer_errors
from shoestring.parallel.rings.connection import Connection
from shoestring.parallel.rings.schedule import START, Schedule

Cell = tuple[int, int]
# (what receives, the buffer that it is a view of; None where it is the block itself)
Landing = tuple[torch.Tensor, torch.Tensor | None]


class Scratch:
    """Buffers for chunks that are to be added; kept from one collective to the next.

    Args:
        size_bytes: of one buffer, the longest chunk.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._free: deque[torch.Tensor] = deque()

    def take(self, like: torch.Tensor) -> Landing:
        """A view of a buffer, shaped like a chunk, and the buffer."""
        try:
            buffer = self._free.pop()
        except IndexError:
            buffer = torch.empty(self.size_bytes, dtype=torch.uint8)
        return buffer[: like.numel() * like.element_size()].view(like.dtype), buffer

    def give(self, buffer: torch.Tensor) -> None:
        """Take the buffer back."""
        self._free.append(buffer)


class Exchange:
    """One schedule at work on the blocks of one tensor.

    Lanes receive in their own order, a thread each. A message is known by its tag alone, so sends need no
    order: they leave as soon as what they carry is complete, from whichever thread completed it.

    Args:
        blocks: flat views, one per block; sums are made in them.
        result: where a reduce-scatter's block goes, flat; None: it stays in its block.
        chunk_items: elements of a chunk.
        in_flight: receives posted ahead, per lane.
    """

    def __init__(
        self,
        connection: Connection,
        schedule: Schedule,
        blocks: Sequence[torch.Tensor],
        result: torch.Tensor | None,
        chunk_items: int,
        in_flight: int,
        scratch: Scratch,
    ) -> None:
        self._connection = connection
        self._backend = connection.backend
        self._schedule = schedule
        self._chunks = [block.split(chunk_items) if block.numel() else () for block in blocks]
        self._result = result.split(chunk_items) if result is not None and result.numel() else ()
        self._in_flight = in_flight
        self._scratch = scratch
        # As many as the longest block has, whichever blocks a rank handles: tags must agree.
        self._stride = max(len(chunks) for chunks in self._chunks)
        self._first_tag = connection.tags(self._stride * len(schedule))
        self._sends: list[tuple[int, Any]] = []
        self._followers: dict[int, list[int]] = {}
        for number, hop in enumerate(schedule):
            self._followers.setdefault(hop.send_after, []).append(number)
        self._awaited = {hop.add_after for hop in schedule} - {START}
        self._lock = threading.Lock()
        self._complete: set[Cell] = set()
        self._parked: dict[Cell, tuple[int, int, Landing]] = {}

    @property
    def lanes(self) -> int:
        """How many threads it wants."""
        return 1 + max((hop.lane for hop in self._schedule), default=0)

    def run(self, lane: int) -> None:
        """Send what this lane has from the beginning, and receive all that it is to receive, in order.

        Raises:
            PeerLostError: a peer is gone or has sent nothing for the time-out.
        """
        cells = [
            (number, chunk)
            for number, hop in enumerate(self._schedule)
            if hop.lane == lane
            for chunk in range(len(self._chunks[hop.receives]))
        ]
        # Awaited before anything is sent: what arrives unawaited has to be asked for, a round trip more.
        posted = deque(self._post(*cell) for cell in cells[: self._in_flight])
        self._begin(lane)
        for place, (number, chunk) in enumerate(cells):
            if place and place + self._in_flight <= len(cells):
                posted.append(self._post(*cells[place + self._in_flight - 1]))
            work, landing = posted.popleft()
            self._wait(work, self._schedule[number].receive_from, "from")
            self._arrived(number, chunk, landing)

    def finish(self) -> None:
        """Wait until all has left; call it when every lane is through.

        Raises:
            PeerLostError: as `run`.
        """
        for peer, work in self._sends:
            self._wait(work, peer, "to")

    def _begin(self, lane: int) -> None:
        for number in self._followers.get(START, ()):
            hop = self._schedule[number]
            for chunk in range(len(self._chunks[hop.sends]) if hop.lane == lane else 0):
                self._send(number, chunk)

    def _post(self, number: int, chunk: int) -> tuple[Any, Landing]:
        hop = self._schedule[number]
        target = self._chunks[hop.receives][chunk]
        landing = self._scratch.take(target) if hop.adds else (target, None)
        tag = self._first_tag + number * self._stride + chunk
        with self._talking(hop.receive_from, "from"):
            return self._backend.recv([landing[0]], hop.receive_from, tag), landing

    def _send(self, number: int, chunk: int) -> None:
        hop = self._schedule[number]
        tag = self._first_tag + number * self._stride + chunk
        with self._talking(hop.send_to, "to"):
            work = self._backend.send([self._chunks[hop.sends][chunk]], hop.send_to, tag)
        self._sends.append((hop.send_to, work))

    def _arrived(self, number: int, chunk: int, landing: Landing) -> None:
        before = self._schedule[number].add_after
        if before != START:
            with self._lock:
                if (before, chunk) not in self._complete:
                    self._parked[(before, chunk)] = (number, chunk, landing)
                    return
        self._take_in(number, chunk, landing)

    def _take_in(self, number: int, chunk: int, landing: Landing) -> None:
        hop = self._schedule[number]
        arrived, buffer = landing
        if buffer is not None:
            target = self._chunks[hop.receives][chunk]
            torch.add(target, arrived, out=self._result[chunk] if hop.delivers and self._result else target)
            self._scratch.give(buffer)
        for follower in self._followers.get(number, ()):
            self._send(follower, chunk)
        if number in self._awaited:
            with self._lock:
                self._complete.add((number, chunk))
                parked = self._parked.pop((number, chunk), None)
            if parked is not None:
                self._take_in(*parked)

    def _wait(self, work: Any, peer: int, direction: str) -> None:
        with self._talking(peer, direction):
            work.wait(self._connection.timeout)

    @contextmanager
    def _talking(self, peer: int, direction: str) -> Iterator[None]:
        try:
            with peer_errors():
                yield
        except PeerLostError as error:
            rank = self._connection.members[peer]
            raise PeerLostError(f"no data {direction} rank {rank}: {error}") from error
