"""Charts of jobs over rows (source: ours)."""

from __future__ import annotations

from typing import Any

import altair as alt

from shoestring.report import job_view
from shoestring.report.drawing import EVENT_COLOR, curve, curves, data, time_axis
from shoestring.report.record_view import RecordView

TITLES = {"done": "rows done", "failed": "rows with an error", "per_s": "rows per second"}
POOL_TITLES = {"processes": "processes", "busy": "share of their time at work", "waiting": "items queued"}


def job_chart(view: RecordView, key: str) -> Any:
    """`done`, `failed` or `per_s` over time; None: nothing was told, or nothing failed."""
    rows = job_view.done_curve(view)
    if not rows or (key == "failed" and not any(row["failed"] for row in rows)):
        return None
    tips = [alt.Tooltip(f"{one}:Q", title=title, format=",") for one, title in TITLES.items()]
    return curve(view, rows, key, tips)


def pool_chart(view: RecordView, key: str) -> Any:
    """`processes`, `busy` or `waiting` of each pool over time; decisions are marked on the first."""
    rows = job_view.pool_curve(view)
    if not rows:
        return None
    layers = []
    if key == "processes" and (marks := job_view.pool_marks(view)):
        told = [alt.Tooltip("what:N"), alt.Tooltip("pool:N"), alt.Tooltip("reason:N")]
        layers.append(
            alt.Chart(data(marks))
            .mark_point(shape="diamond", filled=True, size=90, color=EVENT_COLOR)
            .encode(x=time_axis(), y=alt.value(8), tooltip=told)
        )
    tips = [alt.Tooltip(f"{one}:Q", title=title) for one, title in POOL_TITLES.items()]
    order = job_view.pool_names(view)
    return curves(view, rows, key, "pool", order, tips, steps=key == "processes", more=layers)
