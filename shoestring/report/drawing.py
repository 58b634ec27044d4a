"""What charts of the page share: time, faults, marks of events (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import altair as alt

from shoestring.report.record_view import RecordView
from shoestring.report.series import REASON_CHARS, Row, rounded

LANE_HEIGHT = 26
HEIGHT = 190
FAULT_COLOR = "#dd5061"  # these two are seen on light and on dark paper
EVENT_COLOR = "#8a8f98"
TIME_TITLE = "time of running (min:s)"
MARKED_EVENTS = 400
SHAPES: Mapping[str, str] = MappingProxyType(
    {"fault": "cross", "checkpoint": "square", "decision": "diamond", "round": "triangle-right"}
)


def data(rows: list[Row]) -> Any:
    """Rows as they stand in the specification."""
    return alt.InlineData(values=rows)


def time_axis(field: str = "at_s") -> Any:
    """Active time, as min:s."""
    text = "floor(datum.value / 60) + ':' + pad(floor(datum.value % 60), 2, '0', 'left')"
    return alt.X(f"{field}:Q", title=TIME_TITLE, axis=alt.Axis(labelExpr=text, tickMinStep=1))


def clock(field: str) -> dict[str, str]:
    """A Vega transform that adds `clock`, the time as min:s, for tooltips."""
    seconds = f"datum.{field}"
    return {"clock": f"floor({seconds} / 60) + ':' + pad(floor({seconds} % 60), 2, '0', 'left')"}


def fault_rules(view: RecordView) -> Any:
    """A dashed line for each fault."""
    rows = [row for row in marks(view) if row["kind"] == "fault"]
    return (
        alt.Chart(data(rows))
        .mark_rule(strokeDash=[4, 3], strokeWidth=1.3, color=FAULT_COLOR)
        .encode(x=time_axis(), tooltip=[alt.Tooltip("reason:N", title="fault")])
    )


def curve(view: RecordView, rows: list[Row], field: str, tips: list[Any]) -> Any:
    """One field of the rows over time, with the faults."""
    base = alt.Chart(data(rows)).encode(x=time_axis(), y=alt.Y(f"{field}:Q", title=None))
    line, reach = base.mark_line(strokeWidth=2.4), base.mark_point(opacity=0, size=120).encode(tooltip=tips)
    return alt.layer(line, fault_rules(view), reach).properties(width="container", height=HEIGHT)


def curves(
    view: RecordView,
    rows: list[Row],
    field: str,
    by: str,
    order: list[str],
    tips: list[Any],
    detail: str = "",
    steps: bool = False,
    more: Sequence[Any] = (),
) -> Any:
    """One field of the rows over time, a line for each value of `by`, with the faults.

    Args:
        order: of these values.
        detail: a field at whose change a line is broken off; empty: none.
        steps: whether the value stays until the next one.
        more: layers on top.
    """
    color = alt.Color(f"{by}:N", sort=order, title=None, legend=alt.Legend(orient="top"))
    base = alt.Chart(data(rows)).encode(x=time_axis(), y=alt.Y(f"{field}:Q", title=None), color=color)
    line = base.mark_line(strokeWidth=1.8, interpolate="step-after" if steps else "linear")
    if detail:
        line = line.encode(detail=f"{detail}:N")
    reach = base.mark_point(size=18, filled=True, opacity=0.7).encode(tooltip=[f"{by}:N", *tips])
    layers = (line, reach, fault_rules(view), *more)
    return alt.layer(*layers).properties(width="container", height=HEIGHT)


def marks(view: RecordView) -> list[Row]:
    """Faults, decisions and checkpoints for the timeline; at most `MARKED_EVENTS`, faults first."""
    rows = []
    for moment in view.moments:
        event = view.events[moment.indices[0]]
        if moment.kind not in SHAPES or event.get("action") == "none" or moment.kind == "round":
            continue
        reason = str(event["reason"]) if "reason" in event else ""
        worker = str(event["worker"]) if "worker" in event else ""
        lane = {"fault": "faults", "decision": "decisions", "checkpoint": "checkpoints"}[moment.kind]
        at = {"at_s": rounded(moment.at_s), "kind": moment.kind, "lane": lane}
        rows.append({**at, "worker": worker, "reason": reason[:REASON_CHARS]})
    rows.sort(key=lambda row: row["kind"] != "fault")
    return sorted(rows[:MARKED_EVENTS], key=lambda row: row["at_s"])
