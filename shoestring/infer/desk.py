"""What a worker's engine and the coordinator have to say to each other, and what still waits to be said
(source: ours). Nothing is lost while the coordinator is away: it is said again, in order, once it is back.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from shoestring.base.clock import Clock
from shoestring.base.errors import TransportError
from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m
from shoestring.fleet.job_status import PoolShown
from shoestring.fleet.shard_messages import PoolChange, Shard, ShardOrders

TELL_S = 1.0
PAUSE_S, PAUSE_MAX_S = 0.1, 2.0
"""After no answer; doubles with each."""


class Seat(Protocol):
    """As `fleet.shard_seat.ShardSeat`, which says what each call may raise."""

    def lease(self) -> Shard | m.Stop | None:
        """Rows to work on; the end; nothing now."""
        ...

    def done(self, lease_id: int, staged: Staged) -> str:
        """Rows are staged: `counted`, `late`, `duplicate`."""
        ...

    def give_back(self, lease_id: int, reason: str) -> None:
        """A shard goes back."""
        ...

    def broken(self, what: str, todo: str) -> None:
        """Going on makes no sense."""
        ...

    def tell(
        self,
        pools: tuple[PoolShown, ...] = (),
        changes: tuple[PoolChange, ...] = (),
        faults: tuple[str, ...] = (),
        begun: int = 0,
        notice: str = "",
    ) -> ShardOrders:
        """How it goes; what to do."""
        ...


@dataclass(frozen=True)
class _Done:
    lease_id: int
    staged: Staged


@dataclass(frozen=True)
class _Back:
    lease_id: int
    reason: str


@dataclass(frozen=True)
class _Broken:
    what: str
    todo: str


@dataclass(frozen=True)
class Settled:
    """The coordinator's word on a shard that was staged: `counted`, `late` or `duplicate`."""

    lease_id: int
    staged: Staged
    outcome: str


@dataclass(frozen=True)
class Over:
    """There will be no more shards."""

    reason: str


@dataclass(frozen=True)
class BrokenTold:
    """The coordinator knows that the job is broken."""


News = Shard | Settled | ShardOrders | Over | BrokenTold


@dataclass(frozen=True)
class State:
    """How the worker gets on, for `tell`."""

    pools: tuple[PoolShown, ...]
    begun: int
    notice: str


class Desk:
    """All calls to the coordinator.

    Args:
        seat: makes them.
        clock: where time comes from.
    """

    def __init__(self, seat: Seat, clock: Clock) -> None:
        self._seat = seat
        self._clock = clock
        self._outbox: deque[_Done | _Back | _Broken] = deque()
        self._changes: list[PoolChange] = []
        self._faults: list[str] = []
        self._tell_at_s = self._again_at_s = clock.now()
        self._pause_s = PAUSE_S

    @property
    def waiting(self) -> int:
        """Shards, and words about the job, that the coordinator does not know of yet."""
        return len(self._outbox)

    @property
    def untold(self) -> bool:
        """Whether there is something for the record."""
        return bool(self._changes or self._faults)

    @property
    def staged(self) -> int:
        """Shards that are staged and not told yet."""
        return sum(isinstance(one, _Done) for one in self._outbox)

    def done(self, lease_id: int, staged: Staged) -> None:
        """A shard is staged."""
        self._outbox.append(_Done(lease_id, staged))

    def give_back(self, lease_id: int, reason: str) -> None:
        """A shard goes back."""
        self._outbox.append(_Back(lease_id, reason))

    def broken(self, what: str, todo: str) -> None:
        """Going on makes no sense; said before anything else."""
        self._outbox.appendleft(_Broken(what, todo))

    def changed(self, change: PoolChange) -> None:
        """A decision, for the record."""
        self._changes.append(change)

    def fault(self, text: str) -> None:
        """Something went wrong, for the record."""
        self._faults.append(text)

    def hurry(self) -> None:
        """Tell with the next turn."""
        self._tell_at_s = self._clock.now()

    def turn(self, wanted: int, state: State) -> list[News]:
        """Say what is to be said, ask for `wanted` shards; each call is one round trip, and after one that
        gets no answer there is a pause.

        Raises:
            DismissedError, FleetError: as the seat says.
        """
        news: list[News] = []
        if self._clock.now() < self._again_at_s:
            return news
        try:
            while self._outbox:
                news += self._say(self._outbox[0])
                self._outbox.popleft()
            if self._clock.now() >= self._tell_at_s:
                news.append(self._tell(state))
            for _ in range(wanted):
                got = self._seat.lease()
                if got is None:
                    break
                if isinstance(got, m.Stop):
                    news.append(Over(got.reason))
                    break
                news.append(got)
        except TransportError:
            self._again_at_s = self._clock.now() + self._pause_s
            self._pause_s = min(PAUSE_MAX_S, 2 * self._pause_s)
        else:
            self._pause_s = PAUSE_S
        return news

    def _say(self, one: _Done | _Back | _Broken) -> list[News]:
        if isinstance(one, _Done):
            return [Settled(one.lease_id, one.staged, self._seat.done(one.lease_id, one.staged))]
        if isinstance(one, _Back):
            self._seat.give_back(one.lease_id, one.reason)
            return []
        self._seat.broken(one.what, one.todo)
        return [BrokenTold()]

    def _tell(self, state: State) -> ShardOrders:
        changes, faults = tuple(self._changes), tuple(self._faults)
        self._changes.clear()  # the seat keeps them until they are told
        self._faults.clear()
        orders = self._seat.tell(state.pools, changes, faults, state.begun, state.notice)
        self._tell_at_s = self._clock.now() + TELL_S
        return orders
