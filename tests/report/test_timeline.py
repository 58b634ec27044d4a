"""The picture of a trace: what is drawn, in which lane, and what is said of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.base.errors import ConfigError, RecordError
from shoestring.report.spans import COMPUTE, Span, lane_of
from shoestring.report.timeline import (
    MARKS,
    figures_line,
    lane_title,
    short_name,
    timeline_chart,
    timeline_png,
    write_timeline,
)

SPANS = [
    Span(rank, lane, kind, name, start_s + 100.0, end_s + 100.0)  # type: ignore[arg-type]
    for rank in (0, 1)
    for lane, kind, name, start_s, end_s in (
        (COMPUTE, "forward", "blocks.0", 0.0, 1.0),
        (COMPUTE, "wait", "blocks.1", 1.0, 1.5),
        (COMPUTE, "backward", "blocks.0", 1.5, 3.0),
        (lane_of("group", True), "parameters", "blocks.1", 0.5, 1.5),
        (lane_of("group", False), "gradients", "blocks.1", 1.6, 2.0),
        (lane_of("peers", False), "gradients", "blocks.1", 1.8, 2.8),
        (lane_of("world", False), "norm", "norm", 2.9, 3.0),
    )
]


def rows_of(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """Data of the bars, panel by panel."""
    return [row for panel in chart["vconcat"] for row in data_of(chart, panel)]


def data_of(chart: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """Altair puts them aside where it keeps each set once, and up where all layers share them."""
    data = part["data"] if "data" in part else part["layer"][0]["data"]
    rows: list[dict[str, Any]] = data["values"] if "values" in data else chart["datasets"][data["name"]]
    return rows


def test_every_span_is_a_bar_in_its_lane_and_norms_are_left_out() -> None:
    rows = rows_of(timeline_chart(SPANS, "a step"))
    assert len(rows) == 2 * 6
    first = rows[0]
    assert (first["lane"], first["start_ms"], first["end_ms"]) == ("computes", 0.0, 1000.0)
    assert rows[5]["lane"] == lane_title(lane_of("peers", False)) == "between groups: gradients"


def test_ranks_share_an_axis_and_can_be_chosen() -> None:
    chart = timeline_chart(SPANS, "a step", ranks=[1])
    assert len(chart["vconcat"]) == 1 and len(rows_of(chart)) == 6
    later = [Span(2, COMPUTE, "forward", "blocks.0", 102.0, 104.0), *SPANS]
    both = timeline_chart(later, "a step", ranks=[0, 2])
    assert max(row["end_ms"] for row in rows_of(both)) == 4000.0
    with pytest.raises(RecordError, match="no spans"):
        timeline_chart(SPANS, "a step", ranks=[0, 7])
    with pytest.raises(RecordError, match="no spans"):
        timeline_chart([], "a step")


def test_labels_stand_where_they_fit() -> None:
    narrow = Span(0, lane_of("group", True), "parameters", "blocks.11", 100.0, 100.004)
    rows = rows_of(timeline_chart([*SPANS, narrow], "a step", ranks=[0]))
    assert [row["label"] for row in rows] == ["1", "", "1", "2", "2", "2", ""]


def test_marks_and_figures_say_what_is_seen() -> None:
    chart = timeline_chart(SPANS, "a step")
    marks = data_of(chart, chart["vconcat"][0]["layer"][2])
    assert {row["letter"] for row in marks} == {letter for letter, _ in MARKS.values()}
    assert figures_line(SPANS) in chart["title"]["subtitle"]
    assert "Compute waits 17% of the step" in figures_line(SPANS)


@pytest.mark.parametrize(
    ("name", "label"),
    [("model.layers.0", "1"), ("root", "root"), ("encoder.head", "head"), ("blocks.11", "12")],
)
def test_units_have_short_names(name: str, label: str) -> None:
    assert short_name(name) == label


def test_pictures_and_pages_are_written(tmp_path: Path) -> None:
    assert timeline_png(SPANS, "a step").startswith(b"\x89PNG")
    assert write_timeline(tmp_path / "step.png", SPANS, "a step").read_bytes().startswith(b"\x89PNG")
    page = write_timeline(tmp_path / "step.html", SPANS, "a <step>").read_text(encoding="utf-8")
    assert "<title>a &lt;step&gt;</title>" in page and "vegaEmbed" in page
    with pytest.raises(ConfigError, match="no picture"):
        write_timeline(tmp_path / "step.gif", SPANS, "a step")
    with pytest.raises(ConfigError, match="cannot write"):
        write_timeline(tmp_path / "none" / "step.png", SPANS, "a step")
