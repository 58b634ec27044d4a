"""Charts of jobs over rows (source: ours)."""

from __future__ import annotations

from typing import Any

import altair as alt

from shoestring.report import job_view
from shoestring.report.drawing import EVENT_COLOR, data, fault_rules, time_axis
from shoestring.report.record_view import RecordView

HEIGHT = 190
TITLES = {"done": "rows done", "failed": "rows with an error", "per_s": "rows per second"}
POOL_TITLES = {"processes": "processes", "busy": "share of their time at work", "waiting": "items queued"}


def job_chart(view: RecordView, key: str) -> Any:
    """`done`, `failed` or `per_s` over time; None: nothing was told, or nothing failed."""
    rows = job_view.done_curve(view)
    if not rows or (key == "failed" and not any(row["failed"] for row in rows)):
        return None
    base = alt.Chart(data(rows)).encode(x=time_axis(), y=alt.Y(f"{key}:Q", title=None))
    tips = [alt.Tooltip(f"{one}:Q", title=title, format=",") for one, title in TITLES.items()]
    line = base.mark_line(strokeWidth=2.4)
    reach = base.mark_point(opacity=0, size=120).encode(tooltip=tips)
    return alt.layer(line, fault_rules(view), reach).properties(width="container", height=HEIGHT)


def pool_chart(view: RecordView, key: str) -> Any:
    """`processes`, `busy` or `waiting` of each pool over time; decisions are marked on the first."""
    rows = job_view.pool_curve(view)
    if not rows:
        return None
    names = job_view.pool_names(view)
    color = alt.Color("pool:N", sort=names, title=None, legend=alt.Legend(orient="top"))
    base = alt.Chart(data(rows)).encode(x=time_axis(), y=alt.Y(f"{key}:Q", title=None), color=color)
    line = base.mark_line(strokeWidth=1.8, interpolate="step-after" if key == "processes" else "linear")
    tips = ["pool:N", *(alt.Tooltip(f"{one}:Q", title=title) for one, title in POOL_TITLES.items())]
    reach = base.mark_point(size=18, filled=True, opacity=0.7).encode(tooltip=tips)
    layers = [line, reach, fault_rules(view)]
    if key == "processes" and (marks := job_view.pool_marks(view)):
        told = [alt.Tooltip("what:N"), alt.Tooltip("pool:N"), alt.Tooltip("reason:N")]
        layers.append(
            alt.Chart(data(marks))
            .mark_point(shape="diamond", filled=True, size=90, color=EVENT_COLOR)
            .encode(x=time_axis(), y=alt.value(8), tooltip=told)
        )
    return alt.layer(*layers).properties(width="container", height=HEIGHT)
