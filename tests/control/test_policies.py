"""Policies: shares always sum to one, splits to the total, and follow the speeds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.control.monitor import WindowView, WorkerView
from shoestring.control.policies import PolicyOptions, even, proportional, split

OPTIONS = PolicyOptions(min_reports=2, min_gain=0.03, min_share=0.05)
speeds = st.dictionaries(
    st.sampled_from([f"w{i}" for i in range(8)]), st.floats(0.001, 1000.0), min_size=2, max_size=8
)


def seen(samples_per_s: float, reports: int = 5) -> WorkerView:
    window = WindowView(reports, 1000, 1000 / samples_per_s)
    return WorkerView(window, window, None)


def alike(names: list[str]) -> dict[str, float]:
    return {name: 1 / len(names) for name in names}


def test_a_worker_twice_as_fast_gets_twice_as_much() -> None:
    view = {"w0": seen(20.0), "w1": seen(10.0)}
    decision = proportional(0.0, view, alike(list(view)), OPTIONS)
    assert decision.shares is not None
    assert decision.shares["w0"] == pytest.approx(2 / 3)
    # The slow one takes 0.5/10 of a unit now, and (1/3)/10 then.
    assert decision.predicted["step_time_ratio"] == pytest.approx(2 / 3)
    assert "w0 20/s" in decision.reason and "33.3%" in decision.reason


def test_a_small_gain_changes_nothing() -> None:
    view = {"w0": seen(10.1), "w1": seen(10.0)}
    decision = proportional(0.0, view, alike(list(view)), OPTIONS)
    assert decision.shares is None and "below 3%" in decision.reason


@pytest.mark.parametrize("view", [{"w0": seen(10.0)}, {"w0": seen(10.0, 1), "w1": seen(1.0, 1)}])
def test_too_little_is_known_to_compare(view: dict[str, WorkerView]) -> None:
    decision = proportional(0.0, view, alike(list(view)), OPTIONS)
    assert decision.shares is None and "too few" in decision.reason


def test_an_unseen_worker_counts_as_the_mean() -> None:
    view = {"w0": seen(30.0), "w1": seen(10.0), "w2": seen(5.0, reports=0)}
    decision = proportional(0.0, view, alike(list(view)), OPTIONS)
    assert decision.shares is not None
    assert decision.shares["w2"] == pytest.approx(20 / 60)


def test_even_leaves_the_batch_alone() -> None:
    assert even(0.0, {"w0": seen(1.0), "w1": seen(9.0)}, alike(["w0", "w1"]), OPTIONS).shares is None


@given(speeds)
def test_shares_sum_to_one_and_nobody_starves(found: dict[str, float]) -> None:
    view = {name: seen(speed) for name, speed in found.items()}
    decision = proportional(0.0, view, alike(list(view)), OPTIONS)
    if decision.shares is not None:
        assert sum(decision.shares.values()) == pytest.approx(1.0)
        floor = OPTIONS.min_share / len(view)
        assert min(decision.shares.values()) >= floor * (1 - 1e-9)
        assert set(decision.shares) == set(view)


@given(speeds, st.integers(0, 100_000))
def test_a_split_is_whole_and_sums_to_the_total(raw: dict[str, float], total: int) -> None:
    shares = {name: value / sum(raw.values()) for name, value in raw.items()}
    parts = split(total, shares)
    assert sum(parts.values()) == total
    assert all(abs(parts[name] - total * shares[name]) < 1 + 1e-6 for name in parts)


def test_a_split_breaks_ties_by_name() -> None:
    assert split(5, {"w1": 0.5, "w0": 0.5}) == {"w0": 3, "w1": 2}
