"""The page of a job over rows: rows, pools, decisions and errors, all recomputed from the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring.base.record import read_events
from shoestring.report import job_view
from shoestring.report.page import write_page
from shoestring.report.record_view import view_of
from shoestring.report.verify import parse, verify_page
from tests.report.job_records import ERRORS, whole_job
from tests.report.records import LIBRARY


def test_all_figures_of_a_job_recompute(tmp_path: Path) -> None:
    run_dir = whole_job(tmp_path)
    text = write_page(run_dir, LIBRARY).read_text(encoding="utf-8")
    assert [check for check in verify_page(run_dir, run_dir / "report.html", LIBRARY) if not check.ok] == []
    assert "<h2>Rows and pools</h2>" in text and "<h2>Learning and speed</h2>" not in text
    assert "No step was completed" not in text
    assert "model is the slowest (400 rows/s)" in text
    page = parse(text)
    names = [name for name, _ in page.charts]
    assert [name for name in names if name.startswith(("job", "pool"))] == [
        "job:done",
        "job:per_s",
        "job:failed",
        "pool:processes",
        "pool:busy",
        "pool:waiting",
    ]
    shown = {
        (mark.attributes["data-formula"], mark.attributes["data-args"]): mark.text for mark in page.marks
    }
    assert shown["job_total", '["rows"]'] == "10,000" and shown["job_total", '["failed"]'] == "10"
    assert shown["job_rate", "[]"] == "500"
    assert shown["part_measured", '["model","row_s"]'] == "2.50 ms"
    assert any(formula == "part_ratio" and text == "1.250" for (formula, _), text in shown.items())
    assert {mark.text for mark in page.marks if mark.attributes["data-formula"] == "key"} >= set(ERRORS)


def test_decisions_are_marked_where_they_were_made(tmp_path: Path) -> None:
    run_dir = whole_job(tmp_path)
    page = parse(write_page(run_dir, LIBRARY).read_text(encoding="utf-8"))
    spec = json.dumps(json.loads(dict(page.charts)["pool:processes"]))
    assert "640 items wait for it" in spec and "diamond" in spec


def test_a_number_that_was_changed_on_the_page_is_found(tmp_path: Path) -> None:
    run_dir = whole_job(tmp_path)
    page = write_page(run_dir, LIBRARY)
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(">10,000</data>", ">10,001</data>"), encoding="utf-8")
    wrong = [check for check in verify_page(run_dir, page, LIBRARY) if not check.ok]
    assert any("job_total(rows)" in check.figure for check in wrong)


def test_a_job_that_still_goes_on_has_its_page(tmp_path: Path) -> None:
    run_dir = whole_job(tmp_path, end=False)
    write_page(run_dir, LIBRARY)
    assert all(check.ok for check in verify_page(run_dir, run_dir / "report.html", LIBRARY))


def test_pools_add_up_over_workers_and_forget_those_that_are_gone(tmp_path: Path) -> None:
    view = view_of(read_events(whole_job(tmp_path) / "events.jsonl"))
    curve = [row for row in job_view.pool_curve(view) if row["pool"] == "model"]
    assert curve[0]["processes"] == 1 and curve[-1]["processes"] == 4  # of one worker, then of two
    assert curve[-1]["busy"] == pytest.approx(0.9)
    assert job_view.pool_names(view) == ["load", "model", "write"]


def test_events_that_lack_fields_are_passed_over(tmp_path: Path) -> None:
    run_dir = whole_job(tmp_path)
    log = read_events(run_dir / "events.jsonl")
    log.events.append(
        {"kind": "pools", "wall_s": 1.0, "source": "x", "worker": "w0", "pools": [{"name": "a"}]}
    )
    log.events.append({"kind": "pools", "wall_s": 1.0, "source": "x"})
    view = view_of(log)
    assert job_view.pool_names(view) == ["load", "model", "write"]
