"""Range sets and maps against plain sets and dictionaries of positions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.ranges import RangeMap, RangeSet, size

RANGE = st.tuples(st.integers(0, 40), st.integers(1, 8)).map(lambda r: (r[0], r[0] + r[1]))
RANGES = st.lists(RANGE, max_size=30)


def positions(ranges: RangeSet) -> set[int]:
    return {p for start, stop in ranges for p in range(start, stop)}


def in_order(ranges: RangeSet) -> bool:
    listed = list(ranges)
    return all(a[1] < b[0] for a, b in itertools.pairwise(listed)) and all(a < b for a, b in listed)


@given(RANGES, RANGES)
def test_add_and_remove(adds: list[tuple[int, int]], removes: list[tuple[int, int]]) -> None:
    ranges, model = RangeSet(), set[int]()
    for start, stop in adds:
        wanted = set(range(start, stop))
        if wanted & model:
            with pytest.raises(ValueError, match="overlaps"):
                ranges.add(start, stop)
        else:
            ranges.add(start, stop)
            model |= wanted
    for start, stop in removes:
        wanted = set(range(start, stop))
        assert {p for a, b in ranges.overlap(start, stop) for p in range(a, b)} == wanted & model
        if wanted <= model:
            ranges.remove(start, stop)
            model -= wanted
        else:
            with pytest.raises(ValueError, match="not there"):
                ranges.remove(start, stop)
        assert positions(ranges) == model and len(ranges) == len(model) and in_order(ranges)


@given(RANGES, st.integers(0, 60), st.none() | st.integers(0, 50))
def test_take_lowest(adds: list[tuple[int, int]], count: int, below: int | None) -> None:
    model = {p for start, stop in adds for p in range(start, stop)}
    ranges = RangeSet((p, p + 1) for p in model)
    ranges.touched = set()
    before = dict(ranges)
    taken = ranges.take_lowest(count, below)
    lowest = sorted(p for p in model if below is None or p < below)[:count]
    assert [p for a, b in taken for p in range(a, b)] == lowest
    assert positions(ranges) == model - set(lowest) and len(ranges) == len(model) - size(taken)
    # Whoever follows `touched` ends with the same ranges.
    followed = {start: stop for start, stop in before.items() if start not in ranges.touched}
    followed |= {s: stop for s in ranges.touched if (stop := ranges.stop_of(s)) is not None}
    assert followed == dict(ranges)


def test_overlapping_ranges_are_refused_as_a_whole() -> None:
    for bad in ([(0, 3), (2, 5)], [(3, 3)], [(4, 2)]):
        with pytest.raises(ValueError, match="overlaps"):
            RangeSet(bad)
        with pytest.raises(ValueError, match="overlaps"):
            RangeMap([(a, b, 1) for a, b in bad])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(0, 3)), max_size=30))
def test_a_map_of_ranges(puts: list[tuple[int, int, int]]) -> None:
    entries, model = RangeMap(), dict[int, int]()
    entries.touched = set()
    for start, length, number in puts:
        before, entries.touched = {e[0]: e for e in entries}, set()
        if number:
            entries.put(start, start + length, number)
            model |= dict.fromkeys(range(start, start + length), number)
        else:
            entries.clear(start, start + length)
            model = {p: n for p, n in model.items() if not start <= p < start + length}
        followed = {key: entry for key, entry in before.items() if key not in entries.touched}
        followed |= {k: e for k in entries.touched if (e := entries.entry_at(k)) is not None}
        assert followed == {e[0]: e for e in entries}
        assert {p: n for a, b, n in entries for p in range(a, b)} == model
        assert {p: n for a, b, n in entries.overlap(5, 20) for p in range(a, b)} == {
            p: n for p, n in model.items() if 5 <= p < 20
        }
