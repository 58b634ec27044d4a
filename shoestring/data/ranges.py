"""Sets and maps of positions as sorted, disjoint, half-open ranges (source: ours)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
Marked = tuple[int, int, int]


class RangeSet:
    """Disjoint half-open ranges; neighbours are merged. Operations cost O(log n) plus the list's memmove.

    Args:
        ranges: what is in it, in any order.

    Attributes:
        touched: starts of ranges that were added, changed or removed since it was last cleared;
            None: nobody asks.

    Raises:
        ValueError: the ranges overlap or one is empty.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._size = 0
        self.touched: set[int] | None = None
        for start, stop in sorted(ranges):
            if start >= stop or (self._stops and start < self._stops[-1]):
                raise ValueError(f"[{start}, {stop}) is empty or overlaps")
            self._size += stop - start
            if self._stops and self._stops[-1] == start:
                self._stops[-1] = stop
            else:
                self._starts.append(start)
                self._stops.append(stop)

    def __len__(self) -> int:
        """Number of positions."""
        return self._size

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    def __contains__(self, position: int) -> bool:
        at = bisect_right(self._starts, position) - 1
        return at >= 0 and position < self._stops[at]

    @property
    def fragments(self) -> int:
        """Number of ranges."""
        return len(self._starts)

    @property
    def lowest(self) -> Range | None:
        """The first range; None: there is none."""
        return (self._starts[0], self._stops[0]) if self._starts else None

    def stop_of(self, start: int) -> int | None:
        """Where the range that begins exactly at `start` stops; None: none begins there."""
        at = bisect_left(self._starts, start)
        return self._stops[at] if at < len(self._starts) and self._starts[at] == start else None

    def overlap(self, start: int, stop: int) -> list[Range]:
        """The parts of [start, stop) that are in the set."""
        found: list[Range] = []
        at = max(0, bisect_right(self._starts, start) - 1)
        while at < len(self._starts) and self._starts[at] < stop:
            first, last = max(start, self._starts[at]), min(stop, self._stops[at])
            if first < last:
                found.append((first, last))
            at += 1
        return found

    def add(self, start: int, stop: int) -> None:
        """Add [start, stop).

        Raises:
            ValueError: it is empty, or overlaps what is there.
        """
        if start >= stop:
            raise ValueError(f"[{start}, {stop}) is empty")
        at = bisect_left(self._starts, start)
        if (at > 0 and self._stops[at - 1] > start) or (at < len(self._starts) and self._starts[at] < stop):
            raise ValueError(f"[{start}, {stop}) overlaps")
        self._size += stop - start
        if at < len(self._starts) and self._starts[at] == stop:
            self._touch(stop)
            stop = self._stops[at]
            del self._starts[at], self._stops[at]
        if at > 0 and self._stops[at - 1] == start:
            self._stops[at - 1] = stop
            self._touch(self._starts[at - 1])
            return
        self._starts.insert(at, start)
        self._stops.insert(at, stop)
        self._touch(start)

    def remove(self, start: int, stop: int) -> None:
        """Remove [start, stop).

        Raises:
            ValueError: it is empty, or not wholly in one range of the set.
        """
        at = bisect_right(self._starts, start) - 1
        if start >= stop or at < 0 or stop > self._stops[at]:
            raise ValueError(f"[{start}, {stop}) is not there")
        first, last = self._starts[at], self._stops[at]
        rest = [r for r in ((first, start), (stop, last)) if r[0] < r[1]]
        self._starts[at : at + 1] = [r[0] for r in rest]
        self._stops[at : at + 1] = [r[1] for r in rest]
        self._size -= stop - start
        self._touch(first)
        self._touch(stop)

    def take_lowest(self, count: int, below: int | None = None) -> list[Range]:
        """Remove and return the lowest `count` positions, or all where there are fewer.

        Args:
            below: take only positions lower than that; None: any.
        """
        taken: list[Range] = []
        whole = 0
        while count > 0 and whole < len(self._starts):
            start = self._starts[whole]
            stop = min(self._stops[whole], start + count)
            stop = stop if below is None else min(stop, below)
            if start >= stop:
                break
            self._touch(start)
            taken.append((start, stop))
            count -= stop - start
            if stop < self._stops[whole]:
                self._starts[whole] = stop
                self._touch(stop)
                break
            whole += 1
        del self._starts[:whole], self._stops[:whole]
        self._size -= size(taken)
        return taken

    def _touch(self, start: int) -> None:
        if self.touched is not None:
            self.touched.add(start)


class RangeMap:
    """Disjoint half-open ranges with a number each; neighbours stay apart. For few entries.

    Attributes:
        touched: as in `RangeSet`.

    Raises:
        ValueError: entries overlap or one is empty.
    """

    def __init__(self, entries: Iterable[Marked] = ()) -> None:
        self._entries: list[Marked] = sorted(entries)
        self.touched: set[int] | None = None
        last = None
        for start, stop, _ in self._entries:
            if start >= stop or (last is not None and start < last):
                raise ValueError(f"[{start}, {stop}) is empty or overlaps")
            last = stop

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def __iter__(self) -> Iterator[Marked]:
        return iter(self._entries)

    def entry_at(self, start: int) -> Marked | None:
        """The entry that begins exactly at `start`."""
        at = bisect_left(self._entries, (start,))
        return self._entries[at] if at < len(self._entries) and self._entries[at][0] == start else None

    def overlap(self, start: int, stop: int) -> list[Marked]:
        """The parts of [start, stop) that have a number, in order."""
        at = max(0, bisect_left(self._entries, (start,)) - 1)
        found: list[Marked] = []
        while at < len(self._entries) and self._entries[at][0] < stop:
            first, last, number = self._entries[at]
            if max(first, start) < min(last, stop):
                found.append((max(first, start), min(last, stop), number))
            at += 1
        return found

    def following(self, position: int) -> Iterator[Marked]:
        """The entries that stop behind `position`, in order."""
        at = max(0, bisect_left(self._entries, (position,)) - 1)
        return (entry for entry in self._entries[at:] if entry[1] > position)

    def put(self, start: int, stop: int, number: int) -> None:
        """Give [start, stop) a number, whatever it had."""
        self.clear(start, stop)
        at = bisect_left(self._entries, (start,))
        self._entries.insert(at, (start, stop, number))
        self._touch(start)

    def clear(self, start: int, stop: int) -> None:
        """Take the numbers of [start, stop) away."""
        at = max(0, bisect_left(self._entries, (start,)) - 1)
        rest: list[Marked] = []
        upto = at
        while upto < len(self._entries) and self._entries[upto][0] < stop:
            first, last, number = self._entries[upto]
            parts = ((first, min(last, start), number), (max(first, stop), last, number))
            for part in parts:
                if part[0] < part[1]:
                    rest.append(part)
                    self._touch(part[0])
            self._touch(first)
            upto += 1
        self._entries[at:upto] = rest

    def _touch(self, start: int) -> None:
        if self.touched is not None:
            self.touched.add(start)


def size(ranges: Iterable[Range]) -> int:
    """Positions in these ranges."""
    return sum(stop - start for start, stop in ranges)


def append(ranges: list[Range], last: Range) -> list[Range]:
    """Add a range at the end, joined to the one before where they touch."""
    if ranges and ranges[-1][1] == last[0]:
        return [*ranges[:-1], (ranges[-1][0], last[1])]
    return [*ranges, last]
