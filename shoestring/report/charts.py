"""The charts of the page as Vega-Lite specifications, made with Altair (source: ours).

`chart(view, name)` is a pure function of the record, so a chart verifies like any number: the
specification with all its data is made again and compared. Colours come from the page's theme.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import altair as alt

from shoestring.report import tables
from shoestring.report.drawing import (
    EVENT_COLOR,
    FAULT_COLOR,
    HEIGHT,
    LANE_HEIGHT,
    SHAPES,
    clock,
    curve,
    curves,
    data,
    fault_rules,
    marks,
    time_axis,
)
from shoestring.report.job_charts import job_chart, pool_chart
from shoestring.report.record_view import RecordView
from shoestring.report.series import (
    REASON_CHARS,
    Row,
    metric_curve,
    rate_curve,
    rounded,
    time_split,
    worker_curve,
)

WHAT = ("compute", "exchange", "other")


def chart(view: RecordView, name: str) -> dict[str, Any] | None:
    """A chart by name (`metric:loss`, `rate:tokens`, `timeline`, ...); None: there is nothing to draw.

    Raises:
        LookupError: there is no such chart.
    """
    kind, _, argument = name.partition(":")
    made = MAKERS[kind](view, argument)
    if made is None:
        return None
    spec: dict[str, Any] = made.to_dict(validate=False)
    del spec["$schema"], spec["config"]
    return spec


def _metric(view: RecordView, name: str) -> Any:
    rows = metric_curve(view, name)
    if not rows:
        return None
    scale = alt.Scale(zero=False, nice=True)
    base = alt.Chart(data(rows)).encode(x=time_axis())
    tips = [
        alt.Tooltip("step:Q", title="step", format=","),
        alt.Tooltip("smooth:Q", title="trailing mean"),
        alt.Tooltip("value:Q", title="mean here"),
        alt.Tooltip("low:Q", title="lowest"),
        alt.Tooltip("high:Q", title="highest"),
    ]
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=None, scale=scale), y2=alt.Y2("high:Q"))
    thin = base.mark_line(opacity=0.35, strokeWidth=1).encode(y=alt.Y("value:Q", title=None, scale=scale))
    bold = base.mark_line(strokeWidth=2.4).encode(y=alt.Y("smooth:Q", title=None, scale=scale))
    reach = base.mark_point(opacity=0, size=120).encode(y=alt.Y("smooth:Q", title=None), tooltip=tips)
    return alt.layer(band, thin, bold, fault_rules(view), reach).properties(width="container", height=HEIGHT)


def _rate(view: RecordView, name: str) -> Any:
    rows = rate_curve(view, name)
    if not rows:
        return None
    tips = [alt.Tooltip("step:Q", format=","), alt.Tooltip("per_s:Q", title=f"{name} per second", format=",")]
    return curve(view, rows, "per_s", tips)


def _worker_line(view: RecordView, key: str) -> Any:
    rows = worker_curve(view)
    if not rows:
        return None
    titles = {"compute_s": "batch time (s)", "samples": "samples of a step"}
    tips = [alt.Tooltip("step:Q", format=","), alt.Tooltip(f"{key}:Q", title=titles[key])]
    return curves(view, rows, key, "worker", list(view.workers), tips, detail="round")


def _time_split(view: RecordView, argument: str) -> Any:
    rows = time_split(view)
    if not rows:
        return None
    return (
        alt.Chart(data(rows))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X(
                "spent_s:Q", stack="normalize", title="share of its steps' time", axis=alt.Axis(format="%")
            ),
            y=alt.Y("worker:N", title=None, sort=list(view.workers)),
            color=alt.Color("what:N", sort=list(WHAT), title=None, legend=alt.Legend(orient="top")),
            order=alt.Order("order:O"),
            tooltip=["worker:N", "what:N", alt.Tooltip("spent_s:Q", title="seconds")],
        )
        .properties(width="container", height=alt.Step(LANE_HEIGHT))
    )


def _timeline(view: RecordView, argument: str) -> Any:
    bars: list[Row] = []
    for stretch in view.stretches:
        event = view.events[stretch.index]
        ends = {"from_s": rounded(stretch.from_s), "to_s": rounded(stretch.to_s)}
        told = {"round": event.get("round_id"), "reason": str(event.get("reason"))[:REASON_CHARS]}
        bars.append({"lane": stretch.worker, **ends, **told})
    points_of = marks(view)
    if not bars and not points_of:
        return None
    lanes = [*view.workers, "faults", "decisions", "checkpoints"]
    y = alt.Y("lane:N", title=None, sort=lanes, scale=alt.Scale(domain=lanes))
    spans = (
        alt.Chart(data(bars))
        .transform_calculate(**clock("from_s"))
        .mark_bar(height={"band": 0.6}, cornerRadius=3, opacity=0.85)
        .encode(
            x=time_axis("from_s"),
            x2="to_s:Q",
            y=y,
            color=alt.Color("lane:N", sort=list(view.workers), legend=None),
            tooltip=[
                alt.Tooltip("lane:N", title="worker"),
                alt.Tooltip("round:O"),
                alt.Tooltip("clock:N", title="from"),
                alt.Tooltip("reason:N", title="formed because"),
            ],
        )
    )
    points = (
        alt.Chart(data(points_of))
        .transform_calculate(**clock("at_s"))
        .mark_point(filled=True, size=90, opacity=0.95)
        .encode(
            x=time_axis(),
            y=y,
            shape=alt.Shape(
                "kind:N", scale=alt.Scale(domain=list(SHAPES), range=list(SHAPES.values())), legend=None
            ),
            color=alt.condition("datum.kind == 'fault'", alt.value(FAULT_COLOR), alt.value(EVENT_COLOR)),
            tooltip=[alt.Tooltip("clock:N", title="at"), "kind:N", "worker:N", "reason:N"],
        )
    )
    layers = ([spans] if bars else []) + ([points] if points_of else [])
    return alt.layer(*layers).properties(width="container", height=alt.Step(LANE_HEIGHT))


def _plan(view: RecordView, argument: str) -> Any:
    taken, rows = tables.chosen(view), []
    for entry in tables.alternatives(view):
        row = entry.value
        if not isinstance(row.get("step_s"), int | float):
            return None
        split = [(key, row[f"{key}_s"]) for key in ("compute", "exchange") if f"{key}_s" in row]
        for order, (what, predicted_s) in enumerate(split or [("step", row["step_s"])]):
            name = str(row.get("name"))
            is_taken = taken is not None and entry.path == taken.path
            rows.append(
                {
                    "way": name,
                    "what": what,
                    "predicted_s": rounded(predicted_s),
                    "order": order,
                    "taken": is_taken,
                }
            )
    if not rows:
        return None
    return (
        alt.Chart(data(rows))
        .mark_bar(height={"band": 0.72})
        .encode(
            x=alt.X("predicted_s:Q", title="predicted seconds a step"),
            y=alt.Y("way:N", title=None, sort=None),
            color=alt.Color("what:N", sort=list(WHAT), title=None, legend=alt.Legend(orient="top")),
            opacity=alt.condition("datum.taken", alt.value(1.0), alt.value(0.45)),
            order=alt.Order("order:O"),
            tooltip=["way:N", "what:N", alt.Tooltip("predicted_s:Q", title="predicted seconds")],
        )
        .properties(width="container", height=alt.Step(LANE_HEIGHT))
    )


def _comparison(view: RecordView, number: str) -> Any:
    found = tables.comparisons(view)
    if not number.isdigit() or int(number) >= len(found):
        return None
    rows: list[Row] = [
        {
            "what": str(label.value).replace("_", " "),
            "value": rounded(entry.value),
            "own": _is_own(str(label.value)),
        }
        for label, entry in found[int(number)].rows
    ]
    largest = max(row["value"] for row in rows)
    room = alt.Scale(zero=True, domainMax=rounded(largest * 1.12)) if largest > 0 else alt.Scale(zero=True)
    base = alt.Chart(data(rows)).encode(
        y=alt.Y("what:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
    )
    bar = base.mark_bar(height={"band": 0.72}, cornerRadiusEnd=3).encode(
        x=alt.X("value:Q", title=None, scale=room),
        opacity=alt.condition("datum.own", alt.value(1.0), alt.value(0.4)),
        tooltip=["what:N", "value:Q"],
    )
    text = base.mark_text(align="left", dx=5).encode(x="value:Q", text=alt.Text("value:Q", format=".4~g"))
    return alt.layer(bar, text).properties(width="container", height=alt.Step(LANE_HEIGHT))


def _is_own(name: str) -> bool:
    return name.lower().replace("_", " ").split()[:1] == ["model"]


MAKERS: Mapping[str, Callable[[RecordView, str], Any]] = MappingProxyType(
    {
        "metric": _metric,
        "rate": _rate,
        "worker": _worker_line,
        "time_split": _time_split,
        "timeline": _timeline,
        "plan": _plan,
        "comparison": _comparison,
        "job": job_chart,
        "pool": pool_chart,
    }
)
