"""Every formula against what the record was written to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.base.record import read_events
from shoestring.report import formulas
from shoestring.report.record_view import RecordView, view_of
from tests.report.records import WALL_S, Writer, whole_run

EXPECTED: dict[tuple[Any, ...], Any] = {
    ("steps",): 120,
    ("last_step",): 120,
    ("redone",): 0,
    ("workers",): 2,
    ("status",): "finished",
    ("duration",): 2.0 + 0.4 + 0.7 + 0.25 + 120 * 0.5,
    ("total", "samples"): 110 * 32 + 10 * 24,
    ("total", "tokens"): (110 * 32 + 10 * 24) * 256,
    ("ledger", "done"): 110 * 32 + 10 * 24,
    ("ledger", "todo"): 100_000 - (110 * 32 + 10 * 24),
    ("rate", "tokens"): (109 * 32 + 10 * 24) * 256 / (119 * 0.5 + 0.7 + 0.25),
    ("step_median",): 0.5,
    ("count", "fault"): 1,
    ("count_where", "decision", "action", "adjust_batch"): 1,
    ("max", "round", "reform_s"): 0.7,
    ("median", "round", "reform_s"): 0.4,
    ("sum", "round", "reform_s"): 1.35,
    ("reforms",): 2,
    ("reform_max",): 0.7,
    ("metric_last", "balance"): 1.01,
    ("worker", "w0", "samples"): 120 * 24,
    ("worker", "w1", "steps"): 110,
    ("worker", "w1", "share"): 880 / 3760,
    ("worker", "w0", "compute_s"): 0.36,
    ("worker", "w1", "samples_per_s"): 8 / 0.12,
    ("worker", "w1", "exchange_share"): 0.02 / 0.14,
    ("worker", "w0", "memory_bytes"): 10**9 + 120,
    ("exchange_share",): 230 * 0.02 / (230 * 0.02 + 3760 * 0.015),
    ("field", 0, "wall_s"): WALL_S,
    ("length", 1, "skipped"): 2,
    ("predicted_ratio", 2, "alternatives", 1, "step_s"): 0.5 / 0.29,
    ("setting", 0, "settings", "fleet", "members", "workers"): "fleet.members.workers",
    ("key", 1, "skipped", 0, "reason"): "reason",
    ("damaged",): 0,
}


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> RecordView:
    return view_of(read_events(whole_run(tmp_path_factory.mktemp("run")) / "events.jsonl"))


@pytest.mark.parametrize("call", EXPECTED, ids=str)
def test_the_formula_gives_what_was_written(view: RecordView, call: tuple[Any, ...]) -> None:
    value = formulas.evaluate(view, call[0], call[1:])
    expected = EXPECTED[call]
    assert value == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    "call",
    [
        ("no such formula",),
        ("field", 9999),
        ("field", -1, "kind"),
        ("field", True),
        ("rate",),
    ],
    ids=str,
)
def test_what_the_record_does_not_hold_is_an_error(view: RecordView, call: tuple[Any, ...]) -> None:
    with pytest.raises((LookupError, TypeError)):
        formulas.evaluate(view, call[0], call[1:])


def test_re_forming_leaves_out_the_start_of_every_session(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.round(1, ("w0",), 0, 9.0, "start")
    writer.begin(resumed=True)
    writer.round(2, ("w0",), 0, 8.0, "start")
    writer.round(3, ("w0", "w1"), 0, 0.3, "w1 has arrived")
    view = view_of(read_events(tmp_path / "events.jsonl"))
    assert formulas.evaluate(view, "reforms", ()) == 1
    assert formulas.evaluate(view, "reform_max", ()) == 0.3


def test_the_range_of_events_is_the_one_that_was_read(view: RecordView) -> None:
    first, last = formulas.event_range(view, "steps", ())
    assert view.events[first]["kind"] == view.events[last]["kind"] == "step"
    assert (view.events[first]["step"], view.events[last]["step"]) == (1, 120)
    assert formulas.event_range(view, "field", (7, "reason")) == (7, 7)
    assert formulas.event_range(view, "events", ()) == (0, len(view.events) - 1)
