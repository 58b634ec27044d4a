"""Windows forget what is old and keep exact sums of what is not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.control.monitor import SLICES, Monitor


def test_the_short_window_forgets_and_the_long_one_remembers() -> None:
    monitor = Monitor(short_s=10.0, long_s=100.0)
    monitor.observe(0.0, "w0", samples=10, compute_s=1.0)
    for at_s in (18.0, 19.0, 20.0):
        monitor.observe(at_s, "w0", samples=10, compute_s=2.0)
    view = monitor.view(20.0, ("w0",))["w0"]
    assert view.short.samples_per_s == pytest.approx(5.0)
    assert view.short.batch_time_s == pytest.approx(2.0)
    assert view.long.samples_per_s == pytest.approx(40 / 7)
    assert view.last is not None and view.last.compute_s == 2.0


def test_steps_longer_than_the_short_window_leave_it_what_it_needs() -> None:
    monitor = Monitor(short_s=10.0, long_s=100.0)
    for turn in range(5):
        monitor.observe(20.0 * turn, "w0", samples=10, compute_s=20.0)
    view = monitor.view(90.0, ("w0",))["w0"]
    assert (view.short.reports, view.long.reports) == (3, 5)
    assert monitor.view(190.0, ("w0",))["w0"].short.reports == 0, "but nothing older than the long window"


def test_nothing_seen_and_everything_forgotten_look_the_same() -> None:
    monitor = Monitor(10.0, 100.0)
    monitor.observe(0.0, "w0", 10, 1.0)
    views = monitor.view(1000.0, ("w0", "w1"))
    assert views["w0"].short == views["w1"].short == views["w0"].long
    assert views["w1"].short.samples_per_s == 0.0 and views["w1"].last is None


@pytest.mark.parametrize(("samples", "compute_s"), [(0, 1.0), (5, 0.0), (-1, 1.0)])
def test_a_step_without_work_says_nothing(samples: int, compute_s: float) -> None:
    monitor = Monitor(10.0, 100.0)
    monitor.observe(0.0, "w0", samples, compute_s)
    assert monitor.view(0.0, ("w0",))["w0"].long.reports == 0


def test_a_new_process_starts_with_a_clean_slate() -> None:
    monitor = Monitor(10.0, 100.0)
    monitor.observe(0.0, "w0", 10, 1.0)
    monitor.forget("w0")
    assert monitor.view(0.0, ("w0",))["w0"].last is None


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50), st.floats(0.01, 9)), min_size=1, max_size=60))
def test_the_running_sums_equal_the_sums_over_the_window(steps: list[tuple[float, int, float]]) -> None:
    monitor, now, seen = Monitor(50.0, 7.0), 0.0, []
    for gap_s, samples, compute_s in steps:
        now += gap_s
        monitor.observe(now, "w0", samples, compute_s)
        seen.append((now, samples, compute_s))
    inside = [entry for entry in seen if entry[0] >= now - 7.0]
    short = monitor.view(now, ("w0",))["w0"].long
    assert (short.reports, short.samples) == (len(inside), sum(entry[1] for entry in inside))
    assert short.compute_s == pytest.approx(sum(entry[2] for entry in inside))


def test_slices_are_the_same_stretches_of_time_for_all() -> None:
    monitor = Monitor(10.0, 60.0)
    for at_s in range(60):
        monitor.observe(float(at_s), "w0", 10, 1.0)
        if at_s >= 30:
            monitor.observe(float(at_s), "w1", 10, 4.0)
    view = monitor.view(60.0, ("w0", "w1", "w2"))
    assert [part.samples_per_s for part in view["w0"].slices] == [10.0] * SLICES
    assert [part.reports for part in view["w1"].slices] == [0] * 6 + [5] * 6
    assert view["w2"].slices == ()
    assert [part.reports for part in monitor.view(75.0, ("w0",))["w0"].slices] == [5] * 9 + [0] * 3


def test_the_scatter_of_reports_is_the_error_of_the_mean() -> None:
    monitor = Monitor(100.0, 100.0)
    for at_s, took_s in enumerate((0.9, 1.1, 0.9, 1.1)):
        monitor.observe(float(at_s), "w0", 10, took_s)
    error = monitor.view(4.0, ("w0",))["w0"].short.error
    assert error == pytest.approx(0.1 * (4 / 3) ** 0.5 / 4**0.5)


@given(
    st.floats(0.0, 2.0),
    st.floats(0.01, 1.0),
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=2),
)
def test_the_cost_of_a_pass_is_found_again(
    start_s: float, per_sample_s: float, steps: list[tuple[int, int]]
) -> None:
    monitor = Monitor(10.0, 1000.0)
    for passes, samples in steps:
        monitor.observe(0.0, "w0", samples, start_s * passes + per_sample_s * samples, passes)
    cost = monitor.view(0.0, ("w0",))["w0"].cost
    assert cost is not None
    if cost.sure:
        assert (cost.start_s, cost.per_sample_s) == pytest.approx((start_s, per_sample_s), rel=1e-6, abs=1e-6)
    else:
        assert cost.start_s == 0.0


def test_the_short_window_forgets_what_was_before_a_change_of_speed() -> None:
    monitor = Monitor(100.0, 100.0)
    for at_s in range(10):
        monitor.observe(float(at_s), "w0", 10, 1.0 + 0.02 * (at_s % 2))
    assert not monitor.observe(10.0, "w0", 10, 1.4)  # one step that is somewhat slow may be chance
    assert monitor.view(10.0, ("w0",))["w0"].short.reports == 11
    assert not monitor.observe(11.0, "w0", 10, 1.4)
    view = monitor.view(11.0, ("w0",))["w0"]
    assert (view.short.reports, view.short.samples_per_s) == (2, pytest.approx(10 / 1.4))
    assert view.long.reports == 12 and not view.short.changed


def test_one_report_that_leaves_no_doubt_is_a_change_of_speed() -> None:
    monitor = Monitor(100.0, 100.0)
    for at_s in range(11):
        assert not monitor.observe(float(at_s), "w0", 10, 1.0 + 0.02 * (at_s % 2))
    assert monitor.observe(11.0, "w0", 10, 4.0)
    view = monitor.view(11.0, ("w0",))["w0"].short
    assert view.changed and (view.reports, view.samples_per_s) == (1, pytest.approx(2.5))
    assert monitor.observe(12.0, "w0", 10, 1.0)  # and back, against the scatter that is known
    assert monitor.view(12.0, ("w0",))["w0"].short.samples_per_s == pytest.approx(10.0)


@pytest.mark.parametrize(("took_s", "sure"), [(2.5, False), (4.0, True)])
def test_few_reports_leave_doubt_but_for_what_is_plain(took_s: float, sure: bool) -> None:
    monitor = Monitor(100.0, 100.0)
    monitor.observe(0.0, "w0", 10, 1.0)
    assert monitor.observe(1.0, "w0", 10, took_s) == sure


def test_bursts_that_come_before_a_scatter_is_known_are_each_seen_at_once() -> None:
    monitor = Monitor(100.0, 100.0)
    at_s, seen = 0.0, []
    for burst in range(4):
        for turn in range(3):
            at_s += 1.0
            seen.append(monitor.observe(at_s, "w0", 10, (4.0 if burst % 2 else 1.0) + 0.02 * turn))
    assert [turn for turn, sure in enumerate(seen) if sure] == [3, 6, 9]


def test_noise_is_no_change_of_speed() -> None:
    rng, monitor = random.Random(3), Monitor(1000.0, 1000.0)
    for at_s in range(500):
        assert not monitor.observe(float(at_s), "w0", 10, rng.lognormvariate(0.0, 0.1))
    assert monitor.view(500.0, ("w0",))["w0"].short.reports == 500


def test_passes_of_one_size_cannot_tell_the_terms_apart() -> None:
    monitor = Monitor(10.0, 1000.0)
    for _ in range(5):
        monitor.observe(0.0, "w0", 16, 1.0 + 0.1 * 16)
    cost = monitor.view(0.0, ("w0",))["w0"].cost
    assert cost is not None and not cost.sure and cost.of(16) == pytest.approx(2.6)
