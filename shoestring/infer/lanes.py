"""What the lanes of a worker have in common (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shoestring.infer.blame import Failure, Work
from shoestring.infer.crew import Crew, Member, Task
from shoestring.infer.pools import Pools
from shoestring.infer.regroup import Queue
from shoestring.infer.shards import Fresh, HeldSegments, Shards
from shoestring.infer.wire import Replies

T = TypeVar("T")
SHORT_S = 0.05
"""A process whose tasks are shorter than that is given the next one while it works."""
SUSPECT_TIMES, SUSPECT_LEAST_S = 20.0, 1.0
"""Suspects that are not alone may take so many times what their stage usually takes, and so long at least: if
that is wronging them, they are only cut once more."""


class Broken(Exception):
    """Going on makes no sense."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what)
        self.what = what
        self.todo = todo


@dataclass
class Bench:
    """What all lanes work with.

    Attributes:
        queues: stage -> items that wait for it.
        fault: takes what went wrong, for the record.
        identity: position -> what a user knows the row by.
    """

    shards: Shards
    segments: HeldSegments
    crew: Crew[object]
    pools: Pools
    queues: dict[str, Queue]
    remove: Callable[[str], None]
    fault: Callable[[str], None]
    identity: Callable[[int], str]
    tasks: int = 0

    def next_task(self) -> int:
        """A number that no other order has."""
        self.tasks += 1
        return self.tasks

    def ready(self, fresh: list[Fresh]) -> None:
        """Items go to the queues of their stages."""
        for stage, one in fresh:
            self.queues[stage].add([one])

    def arrived(self, segment: str, size_bytes: int) -> None:
        """A segment was made; whoever needs it holds it before `settle`."""
        self.segments.made(segment, size_bytes)


class Lane(Protocol):
    """The work of one pool."""

    name: str

    @property
    def waiting(self) -> int:
        """Items that wait."""
        ...

    @property
    def depth(self) -> int:
        """Tasks that a process may have at a time."""
        ...

    def offer(self, member: Member[object], now: float) -> Task[object] | None:
        """What this process should do now; None: nothing."""
        ...

    def came(self, task: Task[object], reply: Replies, now: float) -> None:
        """A task is through."""
        ...

    def failed(self, task: Task[object], failure: Failure, now: float) -> None:
        """A task has failed.

        Raises:
            Broken: that ends the job.
        """
        ...

    def spared(self, task: Task[object]) -> None:
        """A task was not begun: its process is gone."""
        ...

    def drop(self, lease_id: int) -> None:
        """A shard is not ours any more."""
        ...


@dataclass
class Pace:
    """How long tasks take of late."""

    typical_s: float = 0.0

    def saw(self, took_s: float) -> None:
        """One is through."""
        self.typical_s = took_s if not self.typical_s else 0.8 * self.typical_s + 0.2 * took_s

    @property
    def depth(self) -> int:
        """Tasks that a process may have at a time."""
        return 2 if 0 < self.typical_s < SHORT_S else 1

    def limit_s(self, work: Work[T], hang_s: float) -> float:
        """Until a task counts as hung; a suspect alone gets all the time there is."""
        if not work.suspect or work.items == 1 or not self.typical_s:
            return hang_s
        return min(hang_s, max(SUSPECT_LEAST_S, SUSPECT_TIMES * self.typical_s))
