"""Queues of items that form batches of a target size, and answers that find back to where they came from
(source: AntBatchInfer, target batch size; pieces and slices of shared segments are ours). Pure: no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shoestring.base.errors import InferError
from shoestring.infer.wire import Piece, Ref

Key = tuple[int, ...]
"""Where something stands in its shard: offset of the chunk, then the start of each piece on the way to it.
Sorted by it, pieces are in the order of the rows."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Items [start, stop) of a segment, all of one chunk or of one parent's piece.

    Attributes:
        lease_id: of the shard they belong to.
        key: of that chunk or piece.
        since_s: when they came into the queue.
    """

    segment: str
    start: int
    stop: int
    lease_id: int
    key: Key
    since_s: float = 0.0

    @property
    def size(self) -> int:
        """Items."""
        return self.stop - self.start

    @property
    def ref(self) -> Ref:
        """As orders name it."""
        return Ref(self.segment, self.start, self.stop)

    @property
    def piece_key(self) -> Key:
        """Of the piece that is made of it."""
        return (*self.key, self.start)

    def cut(self, count: int) -> tuple[Slice, Slice]:
        """The first `count` items, and the rest."""
        middle = self.start + count
        return replace(self, stop=middle), replace(self, start=middle)


Slices = tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Back:
    """What came of one slice.

    Attributes:
        piece: for the writer.
        out: items that came out of it.
        failed: items of it with an error.
        runs: (start, stop) in the answer's segment of items that go on: those without error.
    """

    slice: Slice
    piece: Piece
    out: int
    failed: int
    runs: tuple[tuple[int, int], ...]


class Queue:
    """Items that wait for a stage, first come first served.

    Attributes:
        size: items in it.
    """

    def __init__(self) -> None:
        self._slices: deque[Slice] = deque()
        self.size = 0

    def add(self, slices: Iterable[Slice]) -> None:
        """At its end."""
        for one in slices:
            if one.size:
                self._slices.append(one)
                self.size += one.size

    def take(self, count: int) -> Slices:
        """Up to `count` items from its head; the last slice is cut where it has more."""
        taken: list[Slice] = []
        while count > 0 and self._slices:
            one = self._slices.popleft()
            if one.size > count:
                one, rest = one.cut(count)
                self._slices.appendleft(rest)
            taken.append(one)
            count -= one.size
            self.size -= one.size
        return tuple(taken)

    def put_back(self, slices: Sequence[Slice]) -> None:
        """At its head again, in this order: they were taken, but nothing was done with them."""
        self._slices.extendleft(reversed(slices))
        self.size += total(slices)

    def drop(self, lease_id: int) -> None:
        """Forget the items of a shard."""
        self._slices = deque(one for one in self._slices if one.lease_id != lease_id)
        self.size = total(self._slices)

    def ripe(self, target: int, now: float, max_wait_s: float, idle: bool, dry: bool) -> bool:
        """Whether a batch should go out now.

        Args:
            target: items of a full batch.
            now: the time.
            max_wait_s: the item that has waited longest waits no longer than that.
            idle: whether the process that would take it has nothing to do.
            dry: whether nothing upstream can add to it.
        """
        if self.size >= target:
            return True
        return bool(self.size) and idle and (dry or now >= self.ripe_at(max_wait_s))

    def ripe_at(self, max_wait_s: float) -> float:
        """When its first item has waited long enough; infinite where it is empty."""
        return self._slices[0].since_s + max_wait_s if self._slices else float("inf")


def total(slices: Iterable[Slice]) -> int:
    """Items."""
    return sum(one.size for one in slices)


def halves(slices: Slices) -> tuple[Slices, Slices]:
    """Two parts of equal size in items, the first the larger by one where they are odd.

    Raises:
        ValueError: there are not two items.
    """
    if (left := (total(slices) + 1) // 2) < 1 or total(slices) < 2:
        raise ValueError("two items at least have two halves")
    first: list[Slice] = []
    for place, one in enumerate(slices):
        if one.size > left:
            head, tail = one.cut(left)
            return (*first, *((head,) if left else ())), (tail, *slices[place + 1 :])
        first.append(one)
        left -= one.size
    raise AssertionError("more than half of the items were left")


def cut_back(
    slices: Slices, segment: str, rows: int, counts: bytes, errors: dict[int, str]
) -> tuple[Back, ...]:
    """Cut a batch's answer at the bounds of the slices that it was made of.

    Args:
        slices: in the order of the batch.
        segment: of the answer; `rows` items are in it.
        counts, errors: over the whole batch, see `wire.Predicted`.

    Raises:
        InferError: the answer does not belong to this batch.
    """
    items = total(slices)
    if not rows and not counts and len(errors) == items:  # nothing that all agree on: there is no segment
        counts = bytes(4 * items)
    many = np.frombuffer(counts, dtype="<i4") if counts else None
    came = int(many.sum()) if many is not None else rows
    fits = came == rows and (rows == items if many is None else len(many) == items)
    if not fits or any(not 0 <= place < items for place in errors):
        raise InferError(
            f"an answer of {rows} items to a batch of {items} has counts for {came}",
            "report this; it is a mistake in shoestring",
        )
    backs, first, at = [], 0, 0
    placed = _by_slice(slices, errors)
    for one, bad in zip(slices, placed, strict=True):
        part = None if many is None else many[first : first + one.size]
        out = one.size if part is None else int(part.sum())
        backs.append(_back(one, segment, at, out, b"" if part is None else part.tobytes(), bad))
        first, at = first + one.size, at + out
    return tuple(backs)


def all_failed(slices: Slices, text: str) -> tuple[Back, ...]:
    """Nothing came of these: each item gets this error."""
    return tuple(
        Back(one, Piece(one.segment, one.start, one.stop, "", 0, b"", dict.fromkeys(range(one.size), text)),
             0, one.size, ())
        for one in slices
    )  # fmt: skip


def runs_between(start: int, stop: int, bad: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """[start, stop) without the places in `bad`, as half-open runs.

    Example: 0, 5, [1, 2] gives (0, 1), (3, 5).
    """
    runs = []
    for place in sorted(bad):
        if place > start:
            runs.append((start, place))
        start = place + 1
    if start < stop:
        runs.append((start, stop))
    return tuple(runs)


def _back(one: Slice, segment: str, at: int, out: int, counts: bytes, bad: dict[int, str]) -> Back:
    nothing = len(bad) == one.size
    piece = Piece(
        one.segment, one.start, one.stop, "" if nothing else segment, 0 if nothing else at,
        b"" if nothing else counts, bad,
    )  # fmt: skip
    if nothing:
        return Back(one, piece, 0, len(bad), ())
    # With counts an item with an error has none that come out: nothing is to be left out.
    runs = runs_between(at, at + out, () if counts else (at + place for place in bad))
    return Back(one, piece, out, len(bad), runs)


def _by_slice(slices: Slices, errors: dict[int, str]) -> list[dict[int, str]]:
    """Errors of a batch by slice, their places counted from its start."""
    placed: list[dict[int, str]] = [{} for _ in slices]
    if not errors:
        return placed
    ends = np.cumsum([one.size for one in slices])
    for place in sorted(errors):
        which = int(np.searchsorted(ends, place, side="right"))
        placed[which][place - int(ends[which]) + slices[which].size] = errors[place]
    return placed
