"""The page says what happened, for runs that went well and for those that did not."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from shoestring.base.errors import RecordError
from shoestring.base.record import read_events
from shoestring.report.page import render, write_page
from shoestring.report.record_view import TOLD
from shoestring.report.verify import Page, parse, verify_page
from tests.report.records import LIBRARY, Writer, whole_run

BOTH = ("w0", "w1")


def page_of(run_dir: Path) -> tuple[str, Page]:
    """The page of a record, whose figures all recompute."""
    text = write_page(run_dir, LIBRARY).read_text(encoding="utf-8")
    wrong = [check for check in verify_page(run_dir, run_dir / "report.html", LIBRARY) if not check.ok]
    assert wrong == []
    return text, parse(text)


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


def shown(page: Page, formula: str) -> list[str]:
    return [mark.text for mark in page.marks if mark.attributes["data-formula"] == formula]


def test_a_whole_run_has_every_part_result_first(run_dir: Path) -> None:
    text, page = page_of(run_dir)
    assert headings(text) == [
        "Result",
        "Learning and speed",
        "Workers",
        "What happened, and why",
        "The plan, and what else was weighed",
        "Data",
        "Settings, versions, machine",
    ]
    assert [name for name, _ in page.charts] == [
        "comparison:0",
        "comparison:1",
        "metric:loss",
        "rate:tokens",
        "metric:balance",
        "worker:compute_s",
        "worker:samples",
        "time_split",
        "timeline",
        "plan",
    ]
    assert "lib/picture.py" in text and "w1 takes 3.0 x as long" in text
    assert "1.17 x the step time of the chosen way" in text


def test_the_page_loads_nothing(run_dir: Path) -> None:
    text, _ = page_of(run_dir)
    assert "default-src 'none'" in html.unescape(text)
    assert not re.findall(r"""(?:src|href|action)\s*=|@import|url\(""", text)


def test_text_of_the_record_stays_text(run_dir: Path) -> None:
    text, page = page_of(run_dir)
    assert len(page.scripts) == 2
    assert "'''Run 3 <b>tests</b> & more </script>.'''" in "".join(shown(page, "field"))
    assert "<b>tests" not in text and "broken<b>" not in text


def test_charts_hold_no_text_that_ends_a_script(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.steps(1, 3, BOTH, 1)
    writer.record.append("fault", step=3, worker="w1", reason="</script><script>alert(1)</script><!--")
    _, page = page_of(tmp_path)
    assert len(page.scripts) == 2
    charts = {name: json.loads(spec) for name, spec in page.charts}
    assert "</script><script>alert(1)</script><!--" in json.dumps(charts["timeline"])


def test_an_empty_record_is_said_to_be_empty(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").touch()
    text, page = page_of(tmp_path)
    assert "The record of this run is empty" in text
    assert shown(page, "status") == ["empty"] and page.charts == []


def test_a_run_that_failed_before_its_first_step_shows_why(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.end("failed", "all 3 files are unreadable", "give data.files text")
    text, page = page_of(tmp_path)
    assert shown(page, "status") == ["failed"]
    assert "No step was completed" in text
    assert "all 3 files are unreadable" in text and "give data.files text" in text
    assert [name for name, _ in page.charts] == ["plan"]


def test_an_interrupted_run_has_its_curves(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.round(1, BOTH, 0, 0.2, "start")
    writer.steps(1, 30, BOTH, 1)
    writer.end("interrupted")
    text, page = page_of(tmp_path)
    assert shown(page, "status") == ["interrupted"]
    assert "has not recorded a result" in text
    assert "metric:loss" in dict(page.charts)


def test_a_resume_that_changes_a_setting_is_told(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin(rate=0.125)
    writer.steps(1, 3, BOTH, 1)
    writer.begin(resumed=True, rate=0.0625)
    text, _ = page_of(tmp_path)
    changes = text[text.index("Changed by a resume") :]
    assert re.search(r"train\.rate.*0\.125.*then.*0\.0625", changes[: changes.index("</table>")], re.DOTALL)


def test_a_job_that_nobody_has_heard_of(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    for step in range(1, 6):
        writer.clock.advance(1.0)
        writer.record.append(
            "step", step=step, metrics={"reward": 0.1 * step, "kl_2": None}, counts={}, took_s=1.0,
            workers={"w0": {"samples": 4, "compute_s": 0.9}},
        )  # fmt: skip
    result = {
        "win_rate": 0.61,
        "pairs": 1234,
        "rates": {"1": {"bf16": 1.5}},
        "by_slice": {"long": 0.5, "short": 0.7},
        "ready": True,
        "best": {"step": 4},
    }
    writer.record.append("result", **result, worst=[{"prompt": "2 + 2", "score": 0.01}, {"prompt": "hm"}])
    writer.end("finished")
    text, page = page_of(tmp_path)
    charts = dict(page.charts)
    assert {"metric:reward", "rate:samples", "comparison:0"} <= charts.keys()
    assert "metric:kl_2" not in charts
    for expected in ("0.610", "by slice", "2 + 2", "1,234", "rates 1 bf16"):
        assert expected in text


def test_damage_of_the_log_is_named(tmp_path: Path) -> None:
    whole_run(tmp_path)
    log = tmp_path / "events.jsonl"
    lines = log.read_bytes().split(b"\n")
    lines[40] = lines[40].replace(b'"loss":', b'"lost":')
    log.write_bytes(b"\n".join(lines)[:-30])
    _text, page = page_of(tmp_path)
    assert shown(page, "damaged") == ["2"]
    assert shown(page, "damage") == ["41", "checksum does not match", str(len(lines) - 1), "incomplete line"]


def test_long_runs_make_small_pages(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    for start in range(1, 2601, 5):
        writer.steps(start, start + 4, BOTH, start, grad_norm=1.0 / start)
        writer.record.append(
            "decision", step=start, action="adjust_batch", reason=f"at {start}, because " + "x" * 200
        )
    text = render(read_events(tmp_path / "events.jsonl"), LIBRARY)
    assert len(text.encode()) < 3 * 2**20
    page = parse(text)
    assert shown(page, "moments_shown") == ["500"]
    assert int(shown(page, "moments")[0].replace(",", "")) == 651


def test_every_chart_is_what_vega_lite_expects(run_dir: Path) -> None:
    altair = pytest.importorskip("altair")
    for name, spec in parse((run_dir / "report.html").read_text(encoding="utf-8")).charts:
        made = altair.Chart.from_dict(json.loads(spec))  # raises on what the schema does not know
        assert made.to_dict(validate=True)["layer" if "layer" in spec else "mark"], name


def test_a_page_without_a_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError):
        write_page(tmp_path, LIBRARY)


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_what_was_there(run_dir: Path) -> None:
    page = run_dir / "report.html"
    page.rename(run_dir / "kept.html")
    page.mkdir()
    (page / "in the way").touch()
    with pytest.raises(RecordError, match="cannot write the page"):
        write_page(run_dir, "another library")
    assert sorted(path.name for path in page.iterdir()) == ["in the way"]
    assert not list(run_dir.glob(".*.part")), "nothing half written is left"


@pytest.mark.parametrize("kind", TOLD)
def test_every_kind_that_is_told_has_its_row(tmp_path: Path, kind: str) -> None:
    writer = Writer(tmp_path / "events.jsonl")
    writer.begin()
    writer.record.append(kind, step=1, action="told", reason=f"a {kind} for this test", members=["w0"])
    assert f"a {kind} for this test" in render(read_events(tmp_path / "events.jsonl"), LIBRARY)


def test_every_kind_that_the_product_records_is_shown_somewhere() -> None:
    sources = (Path(__file__).parents[2] / "shoestring").rglob("*.py")
    logged = {
        kind
        for path in sources
        for kind in re.findall(r"(?:_log|record)\.append\(\s*\"(\w+)\"", path.read_text(encoding="utf-8"))
    }
    assert {"effect", "recovery", "decision"} <= logged
    own_parts = {"step", "data", "plan", "evaluation", "trial", "rows", "pools", "summary"}
    assert logged - set(TOLD) <= own_parts
