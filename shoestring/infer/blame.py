"""Whose fault it was: a batch that fails is cut in halves until the items that do it are alone (source: ours,
binary search over what failed; AntBatchInfer attaches errors to samples). Pure: no clock, no process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Kind = Literal["died", "killed", "hung", "memory", "raised"]
NEEDED: dict[Kind, int] = {"raised": 1, "died": 2, "hung": 2, "memory": 2, "killed": 3}
"""Failures that an item must have been in, the last of them alone, before it gets the error. An exception is
its own doing; a process may also be stopped or killed by somebody else, most of all by SIGKILL."""

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """How a batch failed.

    Attributes:
        kind: `died`: its process ended by itself or by a signal of its own making; `killed`: by SIGKILL;
            `hung`: it took too long; `memory`: it did not fit; `raised`: an exception.
        text: for the `error` column, one line.
        signature: the same for the same failure: type and place of an exception.
        detail: the traceback.
        todo: what a user can do; empty: nothing is known.
        sure: whether nobody else can have done it: the batch had its process for itself.
    """

    kind: Kind
    text: str
    signature: str = ""
    detail: str = ""
    todo: str = ""
    sure: bool = True


@dataclass(frozen=True)
class Work(Generic[T]):
    """A batch.

    Attributes:
        parts: what it is made of.
        items: in it.
        failures: of batches that these items were in.
        known: their other half has passed: one of these items it must be.
        partner: the other half, which waits for how this one goes.
    """

    parts: T
    items: int
    failures: int = 0
    known: bool = False
    partner: Work[T] | None = None

    @property
    def suspect(self) -> bool:
        """Whether something it is part of has failed."""
        return self.failures > 0


def judge(work: Work[T], failure: Failure) -> tuple[Literal["guilty", "again", "halves"], str]:
    """What to do about a batch that has failed, and why."""
    if work.items > 1:
        return "halves", f"{work.items} items, {failure.text}: which of them it is, halves will tell"
    seen = work.failures + 1
    needed = NEEDED[failure.kind] if failure.sure else seen + 1
    if seen >= needed:
        return "guilty", f"alone, and {failure.text}"
    return "again", f"alone, {failure.text}, but once is no proof" if seen == 1 else failure.text


class Blame(Generic[T]):
    """The batches of a stage, or the reads of loaders, that are to be tried again.

    Args:
        split: cuts parts into two, with the items of the first.

    The first half is tried first. If it passes, the second is cut without being tried whole: so a bad item
    among n costs about log2(n) tries, half of which fail. Want of memory alone is no item's fault: there
    both halves are tried.
    """

    def __init__(self, split: Callable[[T], tuple[T, T, int]]) -> None:
        self._split = split
        self._ready: deque[Work[T]] = deque()

    def __len__(self) -> int:
        """Batches that wait to be tried, without their other halves."""
        return len(self._ready)

    @property
    def items(self) -> int:
        """That wait to be tried."""
        return sum(one.items + (one.partner.items if one.partner else 0) for one in self._ready)

    def next(self) -> Work[T] | None:
        """The next to be tried, whole, in a batch of its own."""
        return self._ready.popleft() if self._ready else None

    def put_back(self, work: Work[T]) -> None:
        """It was not tried after all."""
        self._ready.appendleft(work)

    def passed(self, work: Work[T]) -> None:
        """A batch went well."""
        if work.partner is not None:
            self._known(work.partner)

    def failed(self, work: Work[T], failure: Failure) -> tuple[T | None, str]:
        """A batch went wrong; returns the parts of a guilty item (None: there is none yet), and why."""
        verdict, reason = judge(work, failure)
        if work.partner is not None:  # that this half fails says nothing about the other one
            self._ready.appendleft(_free(work.partner))
        if verdict == "guilty":
            return work.parts, reason
        again = Work(work.parts, work.items, work.failures + 1)
        if verdict == "again":
            self._ready.appendleft(again)
        else:
            self._halve(again, proof=failure.kind != "memory")
        return None, reason

    def drop(self, keep: Callable[[T], tuple[T, int]]) -> None:
        """Keep of each what `keep` returns, with its items (0: forget it)."""
        kept: deque[Work[T]] = deque()
        for one in self._ready:
            alone, partner = _kept(one, keep), _kept(one.partner, keep) if one.partner else None
            if alone is not None and alone.items == one.items:
                kept.append(Work(alone.parts, alone.items, one.failures, one.known, partner))
                continue
            # With items gone, that a half passes proves nothing about the other one.
            kept.extend(half for half in (alone, partner) if half is not None)
        self._ready = kept

    def _known(self, partner: Work[T]) -> None:
        """The other half has passed."""
        if not partner.known:  # for want of memory: it is tried whole
            self._ready.appendleft(_free(partner))
        elif partner.items > 1:
            self._halve(partner, proof=True)
        else:
            self._ready.appendleft(_free(partner))

    def _halve(self, work: Work[T], proof: bool) -> None:
        first, second, items = self._split(work.parts)
        other = Work(second, work.items - items, work.failures, known=proof)
        self._ready.appendleft(Work(first, items, work.failures, partner=other))


class BugWatch:
    """Tells a bug from bad items: the first ones of a stage all fail, in the same way.

    Args:
        rows: so many must fail.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._failed = 0
        self._signature = ""
        self._over = False

    @property
    def open(self) -> bool:
        """Whether it may still be a bug."""
        return not self._over

    def passed(self) -> None:
        """An item went well: from now on the items are to blame."""
        self._over = True

    def guilty(self, failure: Failure) -> bool:
        """An item has failed alone; whether that is enough to call it a bug."""
        signature = failure.signature or failure.text
        if self._over:
            return False
        if self._failed and signature != self._signature:
            self._over = True
            return False
        self._signature = signature
        self._failed += 1
        return self._failed >= self._rows


def _free(work: Work[T]) -> Work[T]:
    """By itself, waiting for nobody."""
    return Work(work.parts, work.items, work.failures)


def _kept(work: Work[T], keep: Callable[[T], tuple[T, int]]) -> Work[T] | None:
    parts, items = keep(work.parts)
    return Work(parts, items, work.failures) if items else None
