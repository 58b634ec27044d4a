"""Rows that are given up, on their way into the output: a pure state machine (source: ours).

The ledger is done with a dead position; the output is not: each row stands in it, with an error. So dead
positions are handed out once more, with their verdict, under lease numbers of a range of their own. Their
output is committed as any other, and what is committed is written.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from shoestring.data.output_state import Ranges
from shoestring.data.ranges import Range, RangeSet, size

FIRST_ID = 1_000_000_000
"""Of leases of verdicts; the ledger's own numbers stay far below."""


class Opened(msgspec.Struct, frozen=True, array_like=True):
    """A lease of verdicts: who writes which positions."""

    lease_id: int
    holder: str
    ranges: Ranges


class Kept(msgspec.Struct, frozen=True):
    """What outlives the coordinator."""

    next_id: int = FIRST_ID
    opened: tuple[Opened, ...] = ()


class Verdicts:
    """Dead positions: not written yet, being written, written.

    Args:
        kept: of an earlier coordinator; None: there was none.
        written: positions in committed output of verdicts.

    Raises:
        ValueError: `written` overlaps itself or what is being written.
    """

    def __init__(self, kept: bytes | None = None, written: Iterable[Range] = ()) -> None:
        state = msgspec.msgpack.decode(kept, type=Kept) if kept is not None else Kept()
        self._next_id = state.next_id
        self._opened = {one.lease_id: one for one in state.opened}
        being = [part for one in state.opened for part in one.ranges]
        self._known = RangeSet([*written, *being])
        self._todo = RangeSet()

    def note(self, dead: Iterable[int]) -> RangeSet:
        """These positions are dead; returns those that are new."""
        new = RangeSet((position, position + 1) for position in dead if position not in self._known)
        for start, stop in new:
            self._known.add(start, stop)
            self._todo.add(start, stop)
        return new

    def lease(self, holder: str, count: int) -> Opened | None:
        """Up to `count` of those that nobody writes yet, the lowest first; None: there are none."""
        ranges = self._todo.take_lowest(count)
        if not ranges:
            return None
        lease = Opened(self._next_id, holder, tuple(ranges))
        self._next_id += 1
        self._opened[lease.lease_id] = lease
        return lease

    def complete(self, lease_id: int, holder: str) -> bool:
        """It is written, in the commit that comes; False: it is not this holder's (any more)."""
        if lease_id not in self._opened or self._opened[lease_id].holder != holder:
            return False
        del self._opened[lease_id]
        return True

    def release(self, lease_id: int) -> None:
        """Not written: somebody else shall. One that is gone is passed over."""
        if lease_id in self._opened:
            for start, stop in self._opened.pop(lease_id).ranges:
                self._todo.add(start, stop)

    def opened(self) -> tuple[Opened, ...]:
        """What is being written."""
        return tuple(self._opened.values())

    @property
    def pending(self) -> int:
        """Positions that are not in committed output yet."""
        return len(self._todo) + sum(size(one.ranges) for one in self._opened.values())

    def snapshot(self) -> bytes:
        """What must survive the coordinator; which positions are dead or written, the ledger tells."""
        return msgspec.msgpack.encode(Kept(self._next_id, self.opened()))


def is_verdict(lease_id: int) -> bool:
    """Whether a lease is one of verdicts."""
    return lease_id >= FIRST_ID
