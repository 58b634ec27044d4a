"""The child processes of a worker, by pool: started, given tasks, watched, replaced and let go (source:
AntBatchInfer, hangs and leaks restart a process; what is a leak and what is the batch's doing is ours).
"""

from __future__ import annotations

import math
import signal
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError
from shoestring.infer.blame import Failure
from shoestring.infer.kids import Kid, KidEnd, Kids
from shoestring.infer.wire import Orders, Predicted, Raised, Replies, Up

SETUP_DEATHS = 3
"""Processes of a pool that may end in their setup, one after the other."""
BACKOFF_S, BACKOFF_MAX_S = 0.1, 5.0
STOP_S = 10.0
"""A process that was told to stop may take that long."""
OUT_OF_MEMORY = "if memory ran out: the setting memory_bytes bounds a process"
LEAK_SHARE = 0.25
"""A batch that makes its process grow by less than that part of the ceiling is not what broke it."""

T = TypeVar("T")
State = Literal["setup", "ready", "leaving", "stopping"]


@dataclass(frozen=True)
class Bounds:
    """What a pool's processes may take: seconds for their setup, bytes (0: no bound). A task has its own."""

    setup_s: float
    memory_bytes: int = 0


@dataclass
class Task(Generic[T]):
    """An order that was given to a process.

    Attributes:
        work: what it is about, for the engine.
        items: in it.
        holds: segments that it needs.
        limit_s: it may take that long.
        alone: it must have its process for itself.
    """

    order: Orders
    work: T
    items: int
    holds: tuple[str, ...]
    limit_s: float
    alone: bool = False


@dataclass
class Member(Generic[T]):
    """A process of a pool.

    Attributes:
        since_s: its setup, or its oldest task, began.
        room: items that it takes now, of `capacity` in all; -1: no such bound.
        occupied_s: of time with a task, up to `occupied_from_s` where it has one now.
        base_bytes: of its memory when its oldest task began.
        doom: why it was killed, or will be once its task is through (`after`).
    """

    kid: Kid
    pool: str
    device: str
    since_s: float
    state: State = "setup"
    streams: bool = False
    room: int = -1
    capacity: int = -1
    tasks: deque[Task[T]] = field(default_factory=deque)
    setup_s: float = 0.0
    occupied_s: float = 0.0
    occupied_from_s: float = 0.0
    memory_bytes: int = 0
    base_bytes: int = 0
    doom: Failure | None = None
    after: str = ""


@dataclass(frozen=True)
class Came(Generic[T]):
    """A process has answered a task, which (`swollen`) has made it larger than it may be."""

    member: Member[T]
    task: Task[T]
    reply: Replies
    swollen: bool = False


@dataclass(frozen=True)
class Gone(Generic[T]):
    """A process has ended that should not have: `blamed` were in work, `spared` only waited in it."""

    member: Member[T]
    failure: Failure
    blamed: tuple[Task[T], ...]
    spared: tuple[Task[T], ...]
    reason: str


@dataclass(frozen=True)
class Hopeless:
    """A pool's processes cannot be set up."""

    pool: str
    failure: Failure


@dataclass(frozen=True)
class Ready(Generic[T]):
    """A process is set up."""

    member: Member[T]


Event = Came[T] | Gone[T] | Hopeless | Ready[T]


@dataclass
class _Roster(Generic[T]):
    """A pool: its bounds, how many there should be, who there is, and how its last starts went."""

    bounds: Bounds
    share: float
    target: int = 0
    members: list[Member[T]] = field(default_factory=list)
    deaths: int = 0
    start_at_s: float = 0.0
    restarts: int = 0
    ever_ready: bool = False
    occupied_s: float = 0.0


class Crew(Generic[T]):
    """All child processes of a worker.

    Args:
        kids: makes them.
        clock: where time comes from.
        bounds: by pool.
        shares: part of a GPU that a process of a pool needs; pools that are not here use none.
        devices: of this worker, `cuda:0` and so on.
    """

    def __init__(
        self,
        kids: Kids,
        clock: Clock,
        bounds: Mapping[str, Bounds],
        shares: Mapping[str, float],
        devices: tuple[str, ...] = (),
    ) -> None:
        self._kids = kids
        self._clock = clock
        self._devices = devices
        self._replaced: list[str] = []
        self._pools: dict[str, _Roster[T]] = {
            pool: _Roster(one, shares[pool] if pool in shares else 0.0) for pool, one in bounds.items()
        }

    # --- looking -------------------------------------------------------------------------------------

    def members(self, pool: str) -> list[Member[T]]:
        """Processes of a pool, those that leave too."""
        return self._pools[pool].members

    def all(self) -> Iterator[Member[T]]:
        """Processes of all pools."""
        for roster in self._pools.values():
            yield from roster.members

    def target(self, pool: str) -> int:
        """How many a pool should have."""
        return self._pools[pool].target

    def restarts(self, pool: str) -> int:
        """Processes of a pool that had to be replaced so far."""
        return self._pools[pool].restarts

    def working(self, pool: str) -> int:
        """Tasks that are given out."""
        return sum(len(one.tasks) for one in self._pools[pool].members)

    def most(self, pool: str) -> int:
        """Processes that a pool may have now, beside those that the others should have on the same GPUs;
        0: no bound."""
        roster, devices = self._pools[pool], len(self._devices)
        if not roster.share or not devices:
            return 0
        free = devices - sum(one.share * one.target for one in self._pools.values())
        alone = devices * math.floor(1.0 / roster.share + 1e-9)
        return max(1, min(alone, roster.target + math.floor(free / roster.share + 1e-9)))

    # --- who there is ----------------------------------------------------------------------------------

    def resize(self, pool: str, count: int) -> None:
        """There should be so many of a pool."""
        self._pools[pool].target = count

    def keep(self, now: float) -> list[Event[T]]:
        """Start those that are missing, let go of those that are too many."""
        events: list[Event[T]] = []
        for pool, roster in self._pools.items():
            here = [one for one in roster.members if one.state in ("setup", "ready")]
            for one in _spare(here, len(here) - roster.target):
                one.state = "leaving"
            while len(here) < roster.target and now >= roster.start_at_s:
                try:
                    here.append(self._start(pool, roster, now))
                except FleetError as error:
                    failure = Failure("died", error.what, todo=error.todo)
                    events += self._failed_start(pool, roster, failure, now)
                    break
            self._let_go(roster, now)
        return events

    def _let_go(self, roster: _Roster[T], now: float) -> None:
        for one in roster.members:
            if one.state == "leaving" and not one.tasks:
                one.state, one.since_s = "stopping", now
                one.kid.stop()
            elif one.state == "stopping" and now - one.since_s > STOP_S:
                one.kid.kill()

    def _start(self, pool: str, roster: _Roster[T], now: float) -> Member[T]:
        device = ""
        if roster.share and self._devices:
            taken = [(one.device, self._pools[one.pool].share) for one in self.all() if one.device]
            device = place(self._devices, taken)
        member: Member[T] = Member(self._kids.start(pool, device), pool, device, now)
        roster.members.append(member)
        return member

    def _failed_start(self, pool: str, roster: _Roster[T], failure: Failure, now: float) -> list[Event[T]]:
        roster.deaths += 1
        roster.start_at_s = now + min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (roster.deaths - 1))
        # What raises in the first setup of all is a mistake; later it may be want of memory, or a lost disk.
        at_once = failure.kind == "raised" and not roster.ever_ready
        return [Hopeless(pool, failure)] if at_once or roster.deaths >= SETUP_DEATHS else []

    # --- work ------------------------------------------------------------------------------------------

    def free(self, pool: str, depth: int) -> list[Member[T]]:
        """Who could take a task now, those with the least to do first; `depth`: tasks that one may have."""
        able = [one for one in self._pools[pool].members if _able(one, depth)]
        return sorted(able, key=lambda one: len(one.tasks))

    def take_occupied_s(self, pool: str, now: float) -> float:
        """Seconds of its processes with a task since this was asked last."""
        roster = self._pools[pool]
        spent_s, roster.occupied_s = roster.occupied_s, 0.0
        for one in roster.members:
            spent_s += one.occupied_s + (now - one.occupied_from_s if one.tasks else 0.0)
            one.occupied_s, one.occupied_from_s = 0.0, now
        return spent_s

    def send(self, member: Member[T], task: Task[T], now: float) -> None:
        """Give a task."""
        if not member.tasks:
            member.since_s = member.occupied_from_s = now
        member.tasks.append(task)
        if member.room > 0:
            member.room = max(0, member.room - task.items)
        member.kid.send(task.order)

    def wait(self, timeout_s: float) -> list[Event[T]]:
        """What has happened, once something has or the time is over."""
        by_kid = {id(one.kid): one for one in self.all()}
        heard = self._kids.wait([one.kid for one in by_kid.values()], timeout_s)
        now = self._clock.now()
        events: list[Event[T]] = []
        for kid in heard:
            member = by_kid[id(kid)]
            replies, end = kid.receive()
            for reply in replies:
                events += self._heard(member, reply, now)
            if end is not None:
                events += self._ended(member, end, now)
        return events

    def _heard(self, member: Member[T], reply: Replies, now: float) -> list[Event[T]]:
        roster = self._pools[member.pool]
        if isinstance(reply, Up):
            roster.deaths, roster.ever_ready = 0, True
            member.streams, member.setup_s = reply.streams, reply.took_s
            member.room = member.capacity = reply.room
            member.memory_bytes = member.base_bytes = self._kids.memory_bytes(member.kid.pid)
            if member.state == "setup":
                member.state = "ready"
            return [Ready(member)]
        if isinstance(reply, Raised) and reply.task < 0:
            member.doom = failure_of(reply)
            return []  # it ends by itself, and that is seen
        task = next((one for one in member.tasks if one.order.task == reply.task), None)
        if task is None:
            return []  # of a task that it was relieved of
        member.tasks.remove(task)
        member.occupied_s += now - member.occupied_from_s
        member.occupied_from_s = member.since_s = now
        if isinstance(reply, Predicted) and member.capacity >= 0:
            # It does not know yet of what was sent to it meanwhile.
            held = sum(one.items for one in member.tasks)
            member.room = max(0, min(reply.room, member.capacity - held))
        swollen = not isinstance(reply, Up | Raised) and self._weigh(member, reply.cost.memory_bytes, False)
        return [Came(member, task, reply, swollen)]

    def _ended(self, member: Member[T], end: KidEnd, now: float) -> list[Event[T]]:
        roster = self._pools[member.pool]
        roster.members.remove(member)
        roster.occupied_s += member.occupied_s + (now - member.occupied_from_s if member.tasks else 0.0)
        tasks = tuple(member.tasks)
        member.tasks.clear()
        expected = member.state == "stopping" or (bool(member.after) and not tasks)
        if expected:
            return []
        failure = member.doom or failure_of_end(end)
        roster.restarts += 1
        if member.state == "setup":
            failure = member.doom or Failure(failure.kind, f"its setup: {failure.text}", "", end.words)
            gone = Gone(member, failure, (), tasks, f"{member.pool}: {failure.text}")
            return [gone, *self._failed_start(member.pool, roster, failure, now)]
        blamed = tasks if member.streams else tasks[:1]
        return [Gone(member, failure, blamed, tasks[len(blamed) :], f"{member.pool}: {failure.text}")]

    # --- watching ----------------------------------------------------------------------------------------

    def watch_time(self, now: float) -> None:
        """Kill those that take too long; their end is seen as any other's."""
        for one in self.all():
            bounds = self._pools[one.pool].bounds
            if one.doom is not None or one.state == "stopping":
                continue
            if one.state == "setup" and now - one.since_s > bounds.setup_s:
                self._kill(one, Failure("hung", f"took longer than {bounds.setup_s:g} s to set up"))
            elif one.tasks and now - one.since_s > (limit_s := one.tasks[0].limit_s):
                self._kill(one, Failure("hung", f"took longer than {limit_s:g} s"))

    def watch_memory(self) -> list[str]:
        """Look what each holds. One above its ceiling is killed where its task has brought it there, else
        replaced once that is through; returns who was replaced since this was asked last, in words."""
        for one in self.all():
            self._weigh(one, self._kids.memory_bytes(one.kid.pid), bool(one.tasks))
        told, self._replaced = self._replaced, []
        return told

    def _weigh(self, one: Member[T], memory_bytes: int, at_work: bool) -> bool:
        """See `watch_memory`; whether it was a task, which is over, that has made it too large."""
        one.memory_bytes = memory_bytes
        ceiling, base_bytes = self._pools[one.pool].bounds.memory_bytes, one.base_bytes
        if not at_work:
            one.base_bytes = memory_bytes
        verdict = over(memory_bytes, base_bytes, ceiling)
        if not verdict or one.doom is not None or one.after or one.state not in ("ready", "leaving"):
            return False
        held = f"holds {memory_bytes / 1e6:.0f} of {ceiling / 1e6:.0f} MB"
        if verdict == "batch" and at_work:
            self._kill(one, Failure("memory", "does not fit into memory", "", held))
            return False
        one.after, one.state = f"{one.pool}: a process {held}: replaced", "leaving"
        self._pools[one.pool].restarts += 1
        self._replaced.append(one.after)
        return verdict == "batch"

    def _kill(self, member: Member[T], failure: Failure) -> None:
        member.doom = failure
        member.kid.kill()

    # --- the end -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all at once: what they were at is somebody else's now."""
        for roster in self._pools.values():
            for one in roster.members:
                one.kid.kill()
            roster.members.clear()
        self._kids.close()


def over(memory_bytes: int, base_bytes: int, ceiling_bytes: int) -> Literal["", "batch", "leak"]:
    """Whether a process holds too much, and why: its batch, or what it has gathered before.

    Args:
        base_bytes: that it held when its task began.
    """
    if not ceiling_bytes or memory_bytes <= ceiling_bytes:
        return ""
    return "batch" if memory_bytes - base_bytes >= LEAK_SHARE * ceiling_bytes else "leak"


def place(devices: tuple[str, ...], taken: list[tuple[str, float]]) -> str:
    """The device with the least on it; `taken`: (device, share) of each process that there is."""
    return min(devices, key=lambda device: (sum(s for d, s in taken if d == device), devices.index(device)))


def failure_of(raised: Raised) -> Failure:
    """What a child has told of an exception, as a failure."""
    kind: Literal["memory", "raised"] = "memory" if raised.kind == "memory" else "raised"
    text = "does not fit into memory" if kind == "memory" else raised.text
    return Failure(kind, text, raised.signature, raised.detail, raised.todo)


def failure_of_end(end: KidEnd) -> Failure:
    """How a child ended, as a failure of what it was at."""
    if end.code >= 0:
        return Failure("died", f"ended its process (exit code {end.code})", detail=end.words)
    name = signal.Signals(-end.code).name
    if -end.code == signal.SIGKILL:
        return Failure("killed", f"killed its process ({name}; {OUT_OF_MEMORY})", detail=end.words)
    return Failure("died", f"killed its process ({name})", detail=end.words)


def _able(member: Member[T], depth: int) -> bool:
    """Whether a process could take a task."""
    if member.state != "ready" or member.doom is not None or any(task.alone for task in member.tasks):
        return False
    return member.room != 0 if member.streams else len(member.tasks) < depth


def _spare(here: list[Member[T]], count: int) -> list[Member[T]]:
    """Who should go, of too many: those that are not up yet, then those with the least to do."""
    order = sorted(here, key=lambda one: (one.state == "ready", len(one.tasks)))
    return order[: max(0, count)]
