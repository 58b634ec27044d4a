"""The page of a run shows which strategies were weighed, the choice first of all, and verifies."""

from __future__ import annotations

from pathlib import Path

from shoestring.base.record import read_events
from shoestring.cluster.planner import plan_strategy
from shoestring.cluster.strategies import equal_groups
from shoestring.cluster.workers import plan_as_listed
from shoestring.report import tables
from shoestring.report.page import write_page
from shoestring.report.record_view import view_of
from shoestring.report.verify import verify_page
from tests.cluster.clusters import JOB, hosts
from tests.report.records import LIBRARY, Writer


def _run(run_dir: Path, workers: int | None = None) -> str:
    cluster = hosts(2, 2)
    plan = plan_as_listed(cluster, plan_strategy(JOB, cluster, equal_groups(4, 2), wanted="IIG"))
    writer = Writer(run_dir / "events.jsonl")
    writer.begin()
    writer.record.append("plan", **(plan.model_dump() | ({"workers": workers} if workers else {})))
    writer.steps(1, 3, ("w0", "w1"), 1)
    page = write_page(run_dir, LIBRARY)
    assert [check for check in verify_page(run_dir, page, LIBRARY) if not check.ok] == []
    return page.read_text(encoding="utf-8")


def test_every_strategy_has_its_row_and_why_not(tmp_path: Path) -> None:
    text = _run(tmp_path)
    rows = tables.strategies(view_of(read_events(tmp_path / "events.jsonl")))
    assert len(rows) == 27
    assert [row.value["step_s"] for row in rows if row.value["built"]] == sorted(
        row.value["step_s"] for row in rows if row.value["built"]
    )
    assert "What each worker keeps" in text and "IIG was asked for" in text
    assert all(f">{row.value['name']}<" in text for row in rows)


def test_a_changed_prediction_is_found(tmp_path: Path) -> None:
    text = _run(tmp_path)
    rows = tables.strategies(view_of(read_events(tmp_path / "events.jsonl")))
    name = rows[0].value["name"]
    page = tmp_path / "report.html"
    page.write_text(text.replace(f">{name}<", ">XXX<"))
    assert any(not check.ok for check in verify_page(tmp_path, page, LIBRARY))


def test_for_one_worker_there_is_nothing_to_share(tmp_path: Path) -> None:
    assert "What each worker keeps" not in _run(tmp_path, workers=1)
