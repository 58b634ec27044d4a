"""Who owns which blocks of a key-value cache: each sequence one contiguous span, which is extended in place,
appended elsewhere, or waits (in the manner of Flood's segment cache, arXiv 2503.05139; ours in detail).

Pure: no tensor, no clock. A block holds the keys and values of a fixed number of tokens.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, order=True)
class Span:
    """Blocks `start` .. `start + blocks` - 1."""

    start: int
    blocks: int

    @property
    def end(self) -> int:
        """The first block behind it."""
        return self.start + self.blocks


@dataclass(frozen=True)
class Growth:
    """How a sequence got more room, or that it did not.

    Attributes:
        how: `extend`: by what was free behind it; `append`: it moves to `span`, where it fits; `wait`: no
            free run is long enough, and it keeps what it has.
        span: what it owns now.
        old: what it owned before; where `how` is `append` its contents are to be copied.
    """

    how: Literal["extend", "append", "wait"]
    span: Span
    old: Span


class Segments:
    """The spans of a cache.

    Args:
        blocks: in all.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._spans: dict[int, Span] = {}
        self._sorted: list[Span] = []

    def span(self, owner: int) -> Span:
        """What a sequence owns."""
        return self._spans[owner]

    def free(self) -> list[Span]:
        """Runs of free blocks, in order."""
        runs = []
        behind = 0
        for span in self._sorted:
            if span.start > behind:
                runs.append(Span(behind, span.start - behind))
            behind = span.end
        if self.blocks > behind:
            runs.append(Span(behind, self.blocks - behind))
        return runs

    def take(self, owner: int, need: int, wish: int) -> Span | None:
        """A span for a new sequence, of `wish` blocks if there is such a run, else of at least `need`.

        The lowest run that fits is taken: what is in use stays together, and so does what is free.
        """
        run = _choose(self.free(), need, wish)
        if run is None:
            return None
        self._put(owner, Span(run.start, min(run.blocks, wish)))
        return self._spans[owner]

    def grow(self, owner: int, need: int, wish: int) -> Growth:
        """Room for `need` blocks in all, for `wish` if possible."""
        old = self._spans[owner]
        behind = self._room_behind(old)
        if behind >= need:
            span = Span(old.start, max(old.blocks, min(behind, wish)))
            self._put(owner, span)
            return Growth("extend", span, old)
        self._drop(owner)
        run = _choose(self.free(), need, wish)
        if run is None:
            self._put(owner, old)
            return Growth("wait", old, old)
        span = Span(run.start, min(run.blocks, wish))
        self._put(owner, span)
        return Growth("append", span, old)

    def give(self, owner: int) -> Span:
        """The sequence is through; what it owned is free."""
        span = self._spans[owner]
        self._drop(owner)
        return span

    def _room_behind(self, span: Span) -> int:
        """Blocks from its start to the next span."""
        place = bisect_left(self._sorted, span) + 1
        end = self._sorted[place].start if place < len(self._sorted) else self.blocks
        return end - span.start

    def _put(self, owner: int, span: Span) -> None:
        if owner in self._spans:
            self._drop(owner)
        self._spans[owner] = span
        insort(self._sorted, span)

    def _drop(self, owner: int) -> None:
        del self._sorted[bisect_left(self._sorted, self._spans.pop(owner))]


def _choose(runs: list[Span], need: int, wish: int) -> Span | None:
    """The first run that holds `wish`, else the longest that holds `need`."""
    for run in runs:
        if run.blocks >= wish:
            return run
    longest = max(runs, key=lambda run: run.blocks, default=None)
    return longest if longest is not None and longest.blocks >= need else None
