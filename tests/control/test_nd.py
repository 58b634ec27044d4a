"""The policy for contended machines: splits follow speed, not noise; restarts are rare and worth it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.control.decisions import (
    AdjustBatch,
    AdjustLr,
    ControlState,
    Decision,
    PolicyOptions,
    Restart,
    Restarted,
)
from shoestring.control.monitor import SLICES, WindowView, WorkerView
from shoestring.control.nd import nd
from tests.control.states import seen, state

OPTIONS = PolicyOptions()
PATIENT = PolicyOptions(slow_factor=1e9)
speeds = st.dictionaries(
    st.sampled_from([f"w{i}" for i in range(8)]), st.floats(0.1, 1000.0), min_size=2, max_size=8
)


def split_of(decision: Decision) -> dict[str, float] | None:
    return next((dict(a.shares) for a in decision.actions if isinstance(a, AdjustBatch)), None)


def restarted(decision: Decision) -> list[str]:
    return [action.worker for action in decision.actions if isinstance(action, Restart)]


def test_a_worker_twice_as_fast_gets_twice_as_much() -> None:
    decision = nd(0.0, state({"w0": seen(20.0), "w1": seen(10.0)}), OPTIONS)
    shares = split_of(decision)
    assert shares is not None and shares["w0"] == pytest.approx(2 / 3)
    # The slow one takes 0.5/10 of a unit now, and (1/3)/10 then.
    assert decision.predicted["step_time_ratio"] == pytest.approx(2 / 3)
    assert "w0 20/s" in decision.reason and "33.3%" in decision.reason


def test_a_small_gain_changes_nothing() -> None:
    decision = nd(0.0, state({"w0": seen(10.1), "w1": seen(10.0)}), OPTIONS)
    assert not decision.actions and "below 3.0%" in decision.reason


def test_a_gain_that_noise_can_feign_changes_nothing() -> None:
    calm, noisy = (state({"w0": seen(13.0), "w1": seen(10.0, error=error)}) for error in (0.01, 0.10))
    assert split_of(nd(0.0, calm, OPTIONS)) is not None
    # Its own 10%, and the usual 5% as the larger of two: 2 x (10% + 5% sqrt(2 ln 2)).
    assert "below 31.8%" in nd(0.0, noisy, OPTIONS).reason


def test_one_report_of_each_is_enough_for_a_difference_that_noise_does_not_make() -> None:
    shares = split_of(nd(0.0, state({"w0": seen(30.0, 1), "w1": seen(10.0, 1), "w2": seen(5.0, 1)}), PATIENT))
    assert shares is not None and shares["w2"] == pytest.approx(5 / 45)
    ahead = state({"w0": seen(30.0, 2), "w1": seen(10.0, 2), "w2": seen(5.0, 1)})
    shares = split_of(nd(0.0, ahead, PATIENT))
    assert shares is not None and shares["w2"] == pytest.approx(5 / 45)
    decision = nd(0.0, state({"w0": seen(12.0, 1), "w1": seen(10.0, 1), "w2": seen(6.0, 1)}), PATIENT)
    assert not decision.actions and "below 50.0%" in decision.reason


def test_a_newcomer_does_not_hold_up_the_others_split() -> None:
    fleet = {"w0": seen(30.0), "w1": seen(20.0), "w2": seen(25.0, 1)}
    shares = split_of(nd(0.0, state(fleet), PATIENT))
    assert shares is not None and shares["w0"] == pytest.approx(30 / 75), "and counts as the mean meanwhile"


@pytest.mark.parametrize("workers", [{"w0": seen(10.0)}, {"w0": seen(10.0, 1), "w1": seen(1.0, 0)}])
def test_too_little_is_known_to_compare(workers: dict[str, WorkerView]) -> None:
    decision = nd(0.0, state(workers), OPTIONS)
    assert not decision.actions and "too few" in decision.reason


def test_what_is_plain_from_one_report_each_does_not_wait_for_newcomers() -> None:
    fleet = {f"w{n}": seen(20.0, 1) for n in range(6)} | {"slow": seen(2.0, 1), "new": seen(20.0, 0)}
    shares = split_of(nd(0.0, state(fleet), PATIENT))
    assert shares is not None and shares["slow"] == pytest.approx(shares["w0"] / 10)


def test_an_unseen_worker_counts_as_the_mean() -> None:
    shares = split_of(nd(0.0, state({"w0": seen(30.0), "w1": seen(10.0), "w2": seen(5.0, 0)}), PATIENT))
    assert shares is not None and shares["w2"] == pytest.approx(20 / 60)


@given(speeds)
def test_shares_sum_to_one_and_nobody_starves(found: dict[str, float]) -> None:
    shares = split_of(nd(0.0, state({name: seen(speed) for name, speed in found.items()}), PATIENT))
    if shares is not None:
        assert sum(shares.values()) == pytest.approx(1.0)
        assert min(shares.values()) >= PATIENT.min_share / len(found) * (1 - 1e-9)
        assert set(shares) == set(found)


# --- restarts ---------------------------------------------------------------------------------


def one_slow(slow: int = SLICES, **fields: Any) -> ControlState:
    """Three at 20/s, one of which the long window says 5/s, in its last `slow` slices."""
    now = seen(5.0)
    slow_one = replace(seen(20.0, slow=slow), long=now.long, short=now.short, last=now.last)
    return state({"w0": seen(20.0), "w1": seen(20.0), "w2": slow_one}, **fields)


def test_who_is_slow_all_through_the_long_window_gets_a_new_start() -> None:
    decision = nd(1000.0, one_slow(remaining_s=3600.0, restart_s=20.0), OPTIONS)
    assert restarted(decision) == ["w2"]
    # 45 samples a second now, 60 then; and until then it gets what it can do: a ninth in place of a third.
    assert split_of(decision) == pytest.approx({"w0": 4 / 9, "w1": 4 / 9, "w2": 1 / 9})
    assert decision.predicted["step_time_ratio"] == pytest.approx(0.75 / 3)
    assert "4.0 times slower" in decision.reason and "20 s and may save 900 s" in decision.reason


def test_many_that_stay_slow_get_a_new_start_together_but_not_all_at_once() -> None:
    good, bad = one_slow().workers["w0"], one_slow().workers["w2"]
    fleet = {f"w{n:02}": bad if n >= 37 else good for n in range(40)}
    assert restarted(nd(1000.0, state(fleet), OPTIONS)) == ["w37", "w38", "w39"]
    fleet |= {f"w{n:02}": bad for n in range(30, 40)}
    assert len(restarted(nd(1000.0, state(fleet), OPTIONS))) == 4
    each = state(fleet, remaining_s=100.0, restart_s=20.0)  # together they would save 43 s, each of them 3
    assert not restarted(nd(1000.0, each, OPTIONS))


def test_a_burst_of_slowness_is_balanced_and_not_restarted() -> None:
    decision = nd(1000.0, one_slow(slow=SLICES - 1), OPTIONS)
    assert split_of(decision) is not None


def test_who_is_quick_again_is_not_restarted() -> None:
    fleet = one_slow()
    quick = replace(fleet.workers["w2"], last=seen(20.0).last)
    assert split_of(nd(1000.0, replace(fleet, workers={**fleet.workers, "w2": quick}), OPTIONS)) is not None


def test_a_restart_that_does_not_pay_any_more_is_left() -> None:
    decision = nd(1000.0, one_slow(remaining_s=60.0, restart_s=20.0), OPTIONS)
    assert split_of(decision) is not None


@pytest.mark.parametrize(
    ("before", "what"),
    [
        ((Restarted(950.0, 1.0),), "within the cool-down"),
        ((Restarted(10.0, 4.9),), "no faster than before the last one"),
        ((Restarted(10.0, 1.0), Restarted(500.0, 1.0)), "twice already"),
    ],
)
def test_restarts_are_bounded(before: tuple[Restarted, ...], what: str) -> None:
    assert split_of(nd(1000.0, one_slow(restarts={"w2": before}), OPTIONS)) is not None, what


def test_one_that_a_restart_has_helped_may_be_restarted_again() -> None:
    before = {"w2": (Restarted(500.0, 2.0),)}
    assert restarted(nd(1000.0, one_slow(restarts=before), OPTIONS)) == ["w2"]


def test_nobody_is_restarted_while_too_few_were_seen() -> None:
    fleet = one_slow()
    blind = replace(seen(20.0), slices=(WindowView(0, 0, 0.0),) * SLICES)
    fleet = replace(fleet, workers={**fleet.workers, "w0": blind, "w1": blind})
    assert split_of(nd(1000.0, fleet, OPTIONS)) is not None


# --- the learning rate ------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "factor"), [("linear", 2.0), ("sqrt", 2.0**0.5)])
def test_the_learning_rate_follows_the_samples_that_count(rule: Any, factor: float) -> None:
    options = PolicyOptions(lr=rule, reference_batch=50)
    fleet = state({"w0": seen(10.0), "w1": seen(10.0)})
    assert nd(0.0, fleet, options).actions == (AdjustLr(pytest.approx(factor)),)  # type: ignore[arg-type]
    assert not nd(0.0, replace(fleet, lr_factor=factor), options).actions
    assert not nd(0.0, replace(fleet, batch=50), options).actions
