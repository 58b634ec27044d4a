"""Where each item of a shard is: from pieces of batches back to rows (source: ours).

All of it is arrays with one entry an item, never a loop over items: a shard may have a million.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoestring.base.errors import InferError
from shoestring.data.output_state import Ranges
from shoestring.infer.wire import Chunk, Piece

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Items [at, at + out) of segment `answer`, made from parents [first, first + size).

    Attributes:
        counts: of each parent; None: one each.
        errors: place, counted from `first` -> what is wrong.
    """

    first: int
    size: int
    answer: str
    at: int
    out: int
    counts: Array | None
    errors: Mapping[int, str]


@dataclass
class Level:
    """What came out of a stage (or of the source) for one shard, in the order of what went in.

    Attributes:
        parents: how many went in, or could have.
        runs: (segment, first item, one past the last) of what came out, in order.
        counts: int64 [parents], of what came out of each; 0 where nothing did.
        offsets: int64 [parents + 1], of each parent's first item.
        covered: bool [parents]: whether the stage has seen it.
        errors: parent -> what is wrong, in order; `failed` are those parents.
    """

    parents: int
    runs: list[tuple[str, int, int]]
    counts: Array
    offsets: Array
    covered: Array
    errors: dict[int, str]
    failed: Array
    _places: dict[str, tuple[list[int], list[int], list[int]]] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """How many came out."""
        return int(self.offsets[-1])

    def places(self, segment: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Items [start, stop) of a segment as (place in this level, how many).

        Raises:
            InferError: they did not come out of here.
        """
        if not self._places:
            self._index()
        starts, stops, firsts = self._places[segment] if segment in self._places else ([], [], [])
        while start < stop:
            run = bisect_right(starts, start) - 1
            if run < 0 or start >= stops[run]:
                raise _broken(f"items {start} to {stop} of {segment} belong to no row of this shard")
            end = min(stop, stops[run])
            yield firsts[run] + start - starts[run], end - start
            start = end

    def _index(self) -> None:
        found: dict[str, list[tuple[int, int, int]]] = {}
        first = 0
        for segment, start, stop in self.runs:
            found.setdefault(segment, []).append((start, stop, first))
            first += stop - start
        for segment, runs in found.items():
            runs.sort()
            starts, stops, firsts = (list(one) for one in zip(*runs, strict=True))
            self._places[segment] = starts, stops, firsts


def level(parents: int, parts: Iterable[Part], what: str) -> Level:
    """A level from its parts, in whichever order they come.

    Raises:
        InferError: two parts have a parent in common: a row would be there twice.
    """
    ordered = sorted(parts, key=lambda one: one.first)
    counts, covered = np.zeros(parents, np.int64), np.zeros(parents, bool)
    errors: dict[int, str] = {}
    runs: list[tuple[str, int, int]] = []
    end = 0
    for part in ordered:
        if part.first < end:
            raise _broken(f"{what}: item {part.first} of a shard came twice")
        end = part.first + part.size
        covered[part.first : end] = True
        if part.counts is not None:
            counts[part.first : end] = part.counts
        elif part.out:
            counts[part.first : end] = 1
        if part.errors:
            errors |= {part.first + place: text for place, text in part.errors.items()}
        if not part.out:
            continue
        if runs and runs[-1][0] == part.answer and runs[-1][2] == part.at:
            runs[-1] = (part.answer, runs[-1][1], part.at + part.out)
        else:
            runs.append((part.answer, part.at, part.at + part.out))
    offsets = np.zeros(parents + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    errors = dict(sorted(errors.items()))
    return Level(parents, runs, counts, offsets, covered, errors, np.array(list(errors), np.int64))


def rows_level(ranges: Ranges, chunks: Iterable[Chunk]) -> Level:
    """The rows of a shard, as loaders have read them; those of no chunk are not covered.

    Raises:
        InferError: a chunk has rows of other shards.
    """
    order = sorted(range(len(ranges)), key=lambda at: ranges[at])
    starts = [ranges[at][0] for at in order]
    firsts = np.cumsum([0] + [stop - start for start, stop in ranges])
    parts = []
    for chunk in chunks:
        at = 0
        errors = sorted(chunk.errors)
        for low, high in chunk.ranges:
            while low < high:
                found = bisect_right(starts, low) - 1
                start, stop = ranges[order[found]] if found >= 0 else (0, 0)
                if low >= stop:
                    raise _broken(f"row {low} was read for a shard that has {ranges}")
                size = min(high, stop) - low
                first = int(firsts[order[found]]) + low - start
                inside = {one - at: chunk.errors[one] for one in errors if at <= one < at + size}
                parts.append(Part(first, size, chunk.segment, at, size, None, inside))
                low, at = low + size, at + size
    return level(int(firsts[-1]), parts, "the source")


def stage_level(parent: Level, pieces: Iterable[Piece], many: bool, what: str) -> Level:
    """What a stage made of a level.

    Args:
        many: whether it emits any number of items.
        what: the stage's name.

    Raises:
        InferError: pieces do not fit the level.
    """
    parts = []
    for piece in pieces:
        counts = np.frombuffer(piece.counts, "<i4").astype(np.int64) if piece.counts else None
        size = piece.stop - piece.start
        if counts is not None and (not many or len(counts) != size):
            raise _broken(f"{what}: {len(counts)} counts for {size} items")
        if many and counts is None and not piece.answer:
            counts = np.zeros(size, np.int64)
        done, at = 0, piece.at
        for first, length in parent.places(piece.source, piece.start, piece.stop):
            own = None if counts is None else counts[done : done + length]
            out = (length if piece.answer else 0) if own is None else int(own.sum())
            if piece.errors and length < size:
                errors = {
                    one - done: text for one, text in piece.errors.items() if done <= one < done + length
                }
            else:
                errors = dict(piece.errors)
            parts.append(Part(first, length, piece.answer, at, out, own, errors))
            done, at = done + length, at + out
    return level(parent.items, parts, what)


def owners(levels: Iterable[tuple[Level, bool]], places: Array) -> tuple[Array, list[Array]]:
    """Rows of items of the last level, and which item of theirs each is.

    Args:
        levels: from the source on, each with whether it emits many items.

    Returns:
        Row of each item; and for each level that emits many, outermost first, its number among those of the
        same parent.
    """
    numbers: list[Array] = []
    for one, many in reversed(list(levels)):
        parents = np.searchsorted(one.offsets, places, side="right") - 1
        if many:
            numbers.insert(0, places - one.offsets[parents])
        places = parents
    return places, numbers


def rows_of(ranges: Ranges, positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(position, its row in the shard) of those positions that are the shard's."""
    first = 0
    wanted = sorted(positions)
    for start, stop in ranges:
        for position in wanted[bisect_left(wanted, start) : bisect_left(wanted, stop)]:
            yield position, first + position - start
        first += stop - start


def _broken(what: str) -> InferError:
    return InferError(
        f"a shard cannot be put together: {what}", "this is a bug in shoestring: tell its makers"
    )
