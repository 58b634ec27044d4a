"""A record becomes tables: what was done again counts once, pauses are no time, nothing odd is hidden."""

from __future__ import annotations

from pathlib import Path

from shoestring.base.record import read_events
from shoestring.report.record_view import RecordView, fingerprint, prefix, view_of
from tests.report.records import Writer, whole_run

BOTH = ("w0", "w1")


def view(path: Path) -> RecordView:
    return view_of(read_events(path / "events.jsonl"))


def test_pauses_between_sessions_are_no_time(tmp_path: Path) -> None:
    first = Writer(tmp_path / "events.jsonl")
    first.begin()
    first.steps(1, 10, BOTH, 1)
    first.end("interrupted")
    ran_s = 2.0 + 10 * 0.5
    assert view(tmp_path).at_s[-1] == ran_s
    again = Writer(tmp_path / "events.jsonl")
    again.clock.advance(86_400)
    again.begin(resumed=True)
    again.steps(11, 14, BOTH, 2)
    seen = view(tmp_path)
    assert seen.at_s[-1] == ran_s + 4 * 0.5
    assert [step.event.step for step in seen.steps] == list(range(1, 15))
    assert seen.status == "running or killed"


def test_a_step_that_was_done_again_counts_once_as_it_was_done_last(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.steps(1, 10, BOTH, 1, mark=1.0)
    writer.steps(7, 8, ("w0",), 2, mark=2.0)
    seen = view(tmp_path)
    assert [step.event.step for step in seen.steps] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step.event.metrics["mark"] for step in seen.steps] == [1.0] * 6 + [2.0] * 2
    assert seen.redone == 4


def test_a_worker_is_in_a_round_until_it_dies(tmp_path: Path) -> None:
    seen = view(whole_run(tmp_path))
    stretches = [(s.worker, round(s.from_s, 2), round(s.to_s, 2)) for s in seen.stretches]
    dies_s = 2.0 + 0.4 + 50 * 0.5
    one_s, three_s = dies_s + 0.7, dies_s + 0.7 + 10 * 0.5 + 0.25
    ends_s = three_s + 60 * 0.5
    expected = [
        ("w0", 2.4, one_s),
        ("w1", 2.4, dies_s),
        ("w0", one_s, three_s),
        ("w0", three_s, ends_s),
        ("w1", three_s, ends_s),
    ]
    assert stretches == [(name, round(a, 2), round(b, 2)) for name, a, b in expected]


def test_decisions_to_do_nothing_are_one_row_until_something_happens(tmp_path: Path) -> None:
    rows = [(m.kind, len(m.indices)) for m in view(whole_run(tmp_path)).moments]
    kinds = [kind for kind, _ in rows]
    assert kinds[0] == "run" and kinds[-2:] == ["result", "end"]
    assert [size for kind, size in rows if kind == "decision"] == [2, 1, 2, 1, 1]


def test_an_event_without_its_fields_is_named(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.record.append("step", step="three", metrics={"loss": "low"})
    writer.steps(1, 2, BOTH, 1)
    seen = view(tmp_path)
    assert [index for index, _ in seen.odd] == [3]
    assert len(seen.steps) == 2


def test_a_prefix_is_the_log_as_it_was(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.steps(1, 5, BOTH, 1)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"torn\n")
    before = read_events(tmp_path / "events.jsonl")
    writer.steps(6, 9, BOTH, 1)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b"torn again\n")
    after = read_events(tmp_path / "events.jsonl")
    assert len(after.damage) == 2 and fingerprint(after) != fingerprint(before)
    assert prefix(after, len(before.events)) == before
    assert fingerprint(prefix(after, len(before.events))) == fingerprint(before)
