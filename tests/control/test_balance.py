"""The integer programme: exact against enumeration, and quick for a thousand workers."""

from __future__ import annotations

import itertools
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.control.balance import Part, balance

parts = st.builds(
    Part,
    start_s=st.one_of(st.just(0.0), st.floats(0.01, 2.0)),
    per_sample_s=st.floats(0.001, 2.0),
    most=st.integers(1, 6),
    least=st.integers(0, 1),
)


@given(st.lists(parts, min_size=1, max_size=3), st.integers(3, 12))
def test_it_is_as_good_as_trying_everything(workers: list[Part], total: int) -> None:
    found = balance(workers, total)
    assert sum(found) == total and all(n >= part.least for n, part in zip(found, workers, strict=True))
    best = min(
        max(part.seconds(n) for part, n in zip(workers, ns, strict=True))
        for ns in itertools.product(range(total + 1), repeat=len(workers))
        if sum(ns) == total and all(n >= part.least for n, part in zip(ns, workers, strict=True))
    )
    assert max(p.seconds(n) for p, n in zip(workers, found, strict=True)) == pytest.approx(best, rel=1e-9)


def test_a_worker_that_starts_slowly_takes_few_full_passes() -> None:
    slow_start, quick_start = Part(1.0, 0.1, most=8), Part(0.0, 0.1, most=8)
    # One pass of 8 there takes as long as 18 samples here; a second one would take longer than what is left.
    assert balance([slow_start, quick_start], 26) == [8, 18]
    assert balance([slow_start, quick_start], 28) == [8, 20]


@pytest.mark.parametrize(
    ("workers", "total"),
    [([], 3), ([Part(0.0, 1.0, 4, least=5)], 3), ([Part(0.0, 0.0, 4)], 3), ([Part(1.0, 1.0, 0)], 3)],
)
def test_what_makes_no_sense_is_refused(workers: list[Part], total: int) -> None:
    with pytest.raises(ValueError, match=r"samples at least|some time for a pass"):
        balance(workers, total)


def test_a_thousand_workers_take_less_than_50_ms() -> None:
    workers = [Part(0.001 * (i % 7), 0.001 * (1 + i % 13), most=4 + i % 60) for i in range(1000)]
    balance(workers[:10], 100)  # numpy loads
    began_s = perf_counter()
    found = balance(workers, 64_000)
    assert perf_counter() - began_s < 0.05
    assert sum(found) == 64_000
