"""What a worker's engine and the coordinator have to say to each other, and what still waits to be said
(source: ours). Nothing is lost while the coordinator is away: it is said again, in order, once it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


class Speaker(Protocol):
    """What the engine wants of a desk; see `Desk`."""

    @property
    def waiting(self) -> int:
        """Words that the coordinator does not know of yet."""
        ...

    @property
    def staged(self) -> int:
        """Shards among them."""
        ...

    @property
    def untold(self) -> bool:
        """Whether there is something for the record."""
        ...

    @property
    def busy(self) -> bool:
        """Whether an answer may come at any moment."""
        ...

    def done(self, lease_id: int, staged: Staged) -> None:
        """A shard is staged."""
        ...

    def give_back(self, lease_id: int, reason: str) -> None:
        """A shard goes back."""
        ...

    def broken(self, what: str, todo: str) -> None:
        """Going on makes no sense."""
        ...

    def changed(self, change: PoolChange) -> None:
        """A decision."""
        ...

    def fault(self, text: str) -> None:
        """Something went wrong."""
        ...

    def hurry(self) -> None:
        """Tell soon."""
        ...

    def turn(self, wanted: int, state: State) -> list[News]:
        """What is new."""
        ...

    def close(self) -> None:
        """No more is said."""
        ...


class Desk:
    """All calls to the coordinator; a turn takes as long as its answers do.

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
    def busy(self) -> bool:
        """Never between turns."""
        return False

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

    def due(self, wanted: int) -> bool:
        """Whether a turn would have anything to do."""
        now = self._clock.now()
        return now >= self._again_at_s and (bool(self._outbox) or wanted > 0 or now >= self._tell_at_s)

    def close(self) -> None:
        """Nothing is held."""


class BackDesk:
    """A desk whose turns run in a thread of their own: a coordinator that is slow, or away, keeps nobody from
    working.

    What is said during a turn waits for the next one, so the desk behind is never used by two at a time.

    Args:
        desk: the desk behind.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="desk")
        self._turn: Future[list[News]] | None = None
        self._later: list[Callable[[], None]] = []
        self._later_words = self._later_staged = 0
        self._known = (0, 0, False)

    @property
    def busy(self) -> bool:
        """Whether an answer may come at any moment."""
        return self._turn is not None

    @property
    def waiting(self) -> int:
        """Words that the coordinator does not know of yet, as far as is known here."""
        self._look()
        return self._known[0] + self._later_words

    @property
    def staged(self) -> int:
        """Shards among them."""
        self._look()
        return self._known[1] + self._later_staged

    @property
    def untold(self) -> bool:
        """Whether there is something for the record."""
        self._look()
        return self._known[2] or bool(self._later)

    def done(self, lease_id: int, staged: Staged) -> None:
        """A shard is staged."""
        self._later_words += 1
        self._later_staged += 1
        self._say(lambda: self._desk.done(lease_id, staged))

    def give_back(self, lease_id: int, reason: str) -> None:
        """A shard goes back."""
        self._later_words += 1
        self._say(lambda: self._desk.give_back(lease_id, reason))

    def broken(self, what: str, todo: str) -> None:
        """Going on makes no sense."""
        self._later_words += 1
        self._say(lambda: self._desk.broken(what, todo))

    def changed(self, change: PoolChange) -> None:
        """A decision."""
        self._say(lambda: self._desk.changed(change))

    def fault(self, text: str) -> None:
        """Something went wrong."""
        self._say(lambda: self._desk.fault(text))

    def hurry(self) -> None:
        """Tell soon."""
        self._say(self._desk.hurry)

    def turn(self, wanted: int, state: State) -> list[News]:
        """What the last turn brought, if it is over; then another one begins, where there is need. Never
        waits.

        Raises:
            DismissedError, FleetError: as the seat says.
        """
        if self._turn is not None:
            if not self._turn.done():
                return []
            finished, self._turn = self._turn, None
            news = finished.result()
            self._hand_on()
            if news:  # it may change what is wanted
                return news
        self._hand_on()
        if self._desk.due(wanted):
            self._turn = self._thread.submit(self._desk.turn, wanted, state)
        return []

    def close(self) -> None:
        """No more is said; a turn that still runs ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _say(self, word: Callable[[], None]) -> None:
        self._later.append(word)
        if self._turn is None:
            self._hand_on()

    def _hand_on(self) -> None:
        for word in self._later:
            word()
        self._later.clear()
        self._later_words = self._later_staged = 0
        self._look()

    def _look(self) -> None:
        """While a turn runs, what was known before it holds: a shard counts as untold until its news came."""
        if self._turn is None:
            self._known = (self._desk.waiting, self._desk.staged, self._desk.untold)
