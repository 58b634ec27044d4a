"""Sets of positions as sorted, disjoint, half-open ranges (source: ours)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

Range = tuple[int, int]


class RangeSet:
    """Disjoint half-open ranges; neighbours are merged. Operations cost O(log n) plus the list's memmove.

    Attributes:
        touched: starts of ranges that were added, changed or removed since it was last cleared.
    """

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self._size = 0
        self.touched: set[int] = set()
        for start, stop in ranges:
            self.add(start, stop)

    def __len__(self) -> int:
        """Number of positions."""
        return self._size

    def __iter__(self) -> Iterator[Range]:
        return zip(self._starts, self._stops, strict=True)

    def __contains__(self, position: int) -> bool:
        at = bisect_right(self._starts, position) - 1
        return at >= 0 and position < self._stops[at]

    @property
    def pieces(self) -> int:
        """Number of ranges."""
        return len(self._starts)

    def stop_of(self, start: int) -> int | None:
        """Where the range that begins at `start` ends; None when none begins there."""
        at = bisect_left(self._starts, start)
        return self._stops[at] if at < len(self._starts) and self._starts[at] == start else None

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
            self.touched.add(stop)
            stop = self._stops[at]
            del self._starts[at], self._stops[at]
        if at > 0 and self._stops[at - 1] == start:
            self._stops[at - 1] = stop
            self.touched.add(self._starts[at - 1])
            return
        self._starts.insert(at, start)
        self._stops.insert(at, stop)
        self.touched.add(start)

    def take_lowest(self, count: int) -> list[Range]:
        """Remove and return the lowest `count` positions, or all where there are fewer."""
        taken: list[Range] = []
        whole = 0
        while count > 0 and whole < len(self._starts):
            start, stop = self._starts[whole], self._stops[whole]
            self.touched.add(start)
            if stop - start > count:
                taken.append((start, start + count))
                self._starts[whole] = start + count
                self.touched.add(start + count)
                self._size -= count
                count = 0
                break
            taken.append((start, stop))
            count -= stop - start
            self._size -= stop - start
            whole += 1
        del self._starts[:whole], self._stops[:whole]
        return taken

    def remove(self, position: int) -> None:
        """Remove one position.

        Raises:
            KeyError: it is not there.
        """
        at = bisect_right(self._starts, position) - 1
        if at < 0 or position >= self._stops[at]:
            raise KeyError(position)
        start, stop = self._starts[at], self._stops[at]
        rest = [r for r in ((start, position), (position + 1, stop)) if r[0] < r[1]]
        self._starts[at : at + 1] = [r[0] for r in rest]
        self._stops[at : at + 1] = [r[1] for r in rest]
        self._size -= 1
        self.touched |= {start, position + 1}


def size(ranges: Iterable[Range]) -> int:
    """Positions in these ranges."""
    return sum(stop - start for start, stop in ranges)
