"""Curves are shorter than runs, and hide nothing."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.record import read_events
from shoestring.report import series
from shoestring.report.record_view import RecordView, view_of
from tests.report.records import Writer, whole_run


@pytest.fixture
def long_view(tmp_path: Path) -> RecordView:
    """2,000 steps, one of which has a spike."""
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.steps(1, 1233, ("w0", "w1"), 1, odd=0.5)
    writer.steps(1234, 1234, ("w0", "w1"), 1, odd=77.25)
    writer.steps(1235, 2000, ("w0", "w1"), 1, odd=0.5)
    return view_of(read_events(tmp_path / "events.jsonl"))


@given(count=st.integers(0, 3000), limit=st.integers(1, 300))
def test_bins_hold_everything_once(count: int, limit: int) -> None:
    found = series.bins(count, limit)
    assert len(found) <= limit
    assert [i for piece in found for i in piece] == list(range(count))
    assert not found or max(map(len, found)) - min(map(len, found)) <= 1


def test_a_spike_of_one_step_stays_visible(long_view: RecordView) -> None:
    rows = series.metric_curve(long_view, "odd")
    assert len(rows) == series.BINS
    assert max(row["high"] for row in rows) == 77.25
    assert min(row["low"] for row in rows) == 0.5


def test_the_means_are_the_means_of_the_steps(long_view: RecordView) -> None:
    rows = series.metric_curve(long_view, "loss")
    losses = {n: 2 + 6 * math.exp(-n / 40) + 0.1 * math.sin(n) for n in range(1, 2001)}
    before = 0
    for row in rows:
        inside = [losses[n] for n in range(before + 1, row["step"] + 1)]
        trailing = [losses[n] for n in range(max(1, row["step"] - 79), row["step"] + 1)]
        assert row["value"] == pytest.approx(statistics.fmean(inside), rel=1e-4)
        assert row["smooth"] == pytest.approx(statistics.fmean(trailing), rel=1e-4)
        before = row["step"]
    assert before == 2000


def test_a_metric_that_was_not_finite_is_left_out(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.steps(1, 3, ("w0",), 1, wild=2.0)
    writer.steps(4, 4, ("w0",), 1, wild=float("nan"))
    writer.steps(5, 5, ("w0",), 1, wild=4.0)
    rows = series.metric_curve(view_of(read_events(tmp_path / "events.jsonl")), "wild")
    assert [row["step"] for row in rows] == [1, 2, 3, 5]


def test_the_rate_falls_with_the_workers(tmp_path: Path) -> None:
    view = view_of(read_events(whole_run(tmp_path) / "events.jsonl"))
    per_s = {row["step"]: row["per_s"] for row in series.rate_curve(view, "tokens")}
    both, alone = 32 * 256 / 0.5, 24 * 256 / 0.5
    assert per_s[50] == pytest.approx(both, rel=1e-4)
    assert per_s[60] == pytest.approx(alone, rel=1e-4)
    assert per_s[52] < alone  # the seconds without any round are in it
    assert per_s[120] == pytest.approx(both, rel=1e-4)


def test_the_time_of_the_steps_is_split_whole(tmp_path: Path) -> None:
    view = view_of(read_events(whole_run(tmp_path) / "events.jsonl"))
    spent_s = {(row["worker"], row["what"]): row["spent_s"] for row in series.time_split(view)}
    assert spent_s["w1", "compute"] == pytest.approx(110 * 8 * 0.015)
    assert spent_s["w1", "exchange"] == pytest.approx(110 * 0.02)
    assert sum(s for (worker, _), s in spent_s.items() if worker == "w1") == pytest.approx(110 * 0.5)
