"""A picture of a trace: what each rank computes, and what it sends and receives meanwhile (source: ours).

Takes plain spans (`report.spans`); whoever traces need not know of reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from markupsafe import escape

from shoestring.base.errors import ConfigError, RecordError
from shoestring.report.spans import COMPUTE, SCOPES, Kind, Span, examples, lane_of, overlap

COLORS: Mapping[Kind, str] = MappingProxyType(
    {
        "forward": "#7fb0e3",
        "backward": "#2f6db5",
        "update": "#6a4ca3",
        "wait": "#dcdad3",
        "parameters": "#e9a23b",
        "gradients": "#c8434f",
    }
)
WORDS: Mapping[Kind, str] = MappingProxyType(
    {
        "forward": "computes: forward",
        "backward": "computes: backward",
        "update": "update",
        "wait": "waits for traffic",
        "parameters": "traffic: parameters come",
        "gradients": "traffic: gradients are summed",
    }
)
MARKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "fetch": ("A", "a layer's parameters come while another one computes"),
        "leave": ("B", "a layer's gradients leave while backward is at another one"),
        "between": ("C", "gradients go between groups while traffic inside the group and compute go on"),
    }
)
INK, QUIET, MARK_COLOR = "#24292f", "#626a73", "#111111"
WIDTH, ROW = 1400, 27  # pixels
TIMES = ("start_ms:Q", "end_ms:Q", "queued_ms:Q")
LETTER = 6.0  # pixels that a letter of a label takes
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>
<body><div id="plot"></div>
<script>{library}</script>
<script>vegaEmbed("#plot", {spec}, {{actions: false}});</script>
</body></html>
"""


def figures_line(spans: Sequence[Span]) -> str:
    """What the picture shows, in numbers."""
    found = overlap(spans)
    return (
        f"Traffic runs under compute {found.hidden:.0%} of its time. Compute waits {found.waiting:.0%} of "
        f"the step. While groups talk to each other, traffic inside them runs {found.both:.0%} of the time. "
        f"Gradients between groups: {found.early:.0%} of their time before backward ends."
    )


def timeline_chart(spans: Sequence[Span], title: str, ranks: Sequence[int] | None = None) -> dict[str, Any]:
    """The picture as a Vega-Lite specification.

    Args:
        ranks: which to draw, one below the other; all where not given. Numbers are of all ranks.

    Raises:
        RecordError: there is nothing to draw.
    """
    import altair as alt  # half a second to load: only who draws pays

    shown = sorted({span.rank for span in spans}) if ranks is None else list(ranks)
    panels = [[span for span in spans if span.rank == rank and span.kind in COLORS] for rank in shown]
    if not all(panels) or not panels:
        raise RecordError(f"the trace has no spans of ranks {shown}", "trace them, or name ranks that it has")
    start_s = min(span.start_s for panel in panels for span in panel)
    end_ms = 1e3 * (max(span.end_s for panel in panels for span in panel) - start_s)
    charts = [
        _panel(alt, panel, start_s, end_ms, number == 0, number == len(panels) - 1)
        for number, panel in enumerate(panels)
    ]
    marks = (
        ".   ".join(f"{letter}: {words}" for letter, words in MARKS.values())
        + ".   Numbers: layers. Bars of traffic hold the wait for the partner, too."
    )
    chart = alt.vconcat(*charts, spacing=14).properties(
        title=alt.TitleParams(
            title, subtitle=[figures_line(spans), marks], anchor="start", fontSize=17, subtitleFontSize=12,
            subtitleColor=QUIET, subtitlePadding=6, offset=14, color=INK,
        )
    )  # fmt: skip
    axis: dict[str, Any] = {
        "labelColor": INK,
        "titleColor": QUIET,
        "titleFontWeight": "normal",
        "gridColor": "#ece9e2",
    }
    axis |= {"domainColor": "#c9c5bb", "tickColor": "#c9c5bb", "labelLimit": 260, "labelFontSize": 12}
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return spec | {"config": {"background": "#ffffff", "view": {"stroke": None}, "axis": axis, "padding": 16}}


def timeline_png(spans: Sequence[Span], title: str, ranks: Sequence[int] | None = None) -> bytes:
    """The picture as a PNG, three pixels for two."""
    import vl_convert  # as altair

    drawn: bytes = vl_convert.vegalite_to_png(json.dumps(timeline_chart(spans, title, ranks)), scale=1.5)
    return drawn


def timeline_page(spans: Sequence[Span], title: str, ranks: Sequence[int] | None = None) -> str:
    """The picture as a page that needs no network; a span says what it is when pointed at."""
    from shoestring.report.library import vega_library  # seconds to load: only who writes a page pays

    spec = json.dumps(timeline_chart(spans, title, ranks)).replace("<", "\\u003c")
    return TEMPLATE.format(title=escape(title), library=vega_library(), spec=spec)


def write_timeline(path: Path, spans: Sequence[Span], title: str, ranks: Sequence[int] | None = None) -> Path:
    """Write the picture to NAME.png or NAME.html; gives the path back.

    Raises:
        ConfigError: another kind of file, or it cannot be written.
        RecordError: there is nothing to draw.
    """
    if path.suffix == ".png":
        content = timeline_png(spans, title, ranks)
    elif path.suffix == ".html":
        content = timeline_page(spans, title, ranks).encode()
    else:
        raise ConfigError(f"{path} is no picture", "name it NAME.png or NAME.html")
    try:
        path.write_bytes(content)
    except OSError as error:
        said = f"cannot write {path}: {error.strerror}"
        raise ConfigError(said, "choose a place that can be written") from error
    return path


def lane_title(lane: str) -> str:
    """A lane in words."""
    if lane == COMPUTE:
        return "computes"
    scope, _, what = lane.partition(" ")
    return f"{SCOPES[scope]}: {'parameters' if what == 'gather' else 'gradients'}"


def short_name(name: str) -> str:
    """A unit as a label: its number in the list that it is of, counted from 1; else its last word."""
    number = re.search(r"\.(\d+)$", name)
    return str(int(number[1]) + 1) if number else name.rpartition(".")[2]


def _lanes(panel: Sequence[Span]) -> list[str]:
    """Lanes with something on them, from top to bottom."""
    order = [COMPUTE] + [lane_of(scope, gathers) for scope in SCOPES for gathers in (True, False)]
    used = {span.lane for span in panel}
    return [lane for lane in order if lane in used]


def _row(span: Span, start_s: float, end_ms: float) -> dict[str, Any]:
    begin, end = 1e3 * (span.start_s - start_s), 1e3 * (span.end_s - start_s)
    label = short_name(span.name)
    fits = (end - begin) / end_ms * WIDTH > LETTER * len(label) + 3
    return {
        "lane": lane_title(span.lane),
        "kind": WORDS[span.kind],
        "unit": span.name,
        "start_ms": round(begin, 3),
        "end_ms": round(end, 3),
        "middle_ms": round((begin + end) / 2, 3),
        "label": label if fits and span.kind not in ("wait", "update") else "",
        "bytes": span.bytes,
        "queued_ms": round(1e3 * span.queued_s, 3),
    }


def _panel(alt: Any, panel: Sequence[Span], start_s: float, end_ms: float, first: bool, last: bool) -> Any:
    x = alt.X(
        "start_ms:Q", title="milliseconds" if last else None,
        scale=alt.Scale(domain=[0, end_ms], nice=False),
        axis=alt.Axis(grid=True, tickCount=20, format="d", labels=last, ticks=last),
    )  # fmt: skip
    rows = [_row(span, start_s, end_ms) for span in panel]
    lanes = [lane_title(lane) for lane in _lanes(panel)]
    y = alt.Y("lane:N", title=None, sort=lanes, scale=alt.Scale(domain=lanes))
    legend = alt.Legend(orient="top", title=None, symbolType="square", symbolSize=160, labelFontSize=12)
    color = alt.Color(
        "kind:N", scale=alt.Scale(domain=list(WORDS.values()), range=[COLORS[kind] for kind in WORDS]),
        legend=legend if first else None,
    )  # fmt: skip
    base = alt.Chart(alt.InlineData(values=rows)).encode(y=y)
    bars = base.mark_bar(height={"band": 0.66}, stroke="#ffffff", strokeWidth=0.5).encode(
        x=x, x2="end_ms:Q", color=color,
        tooltip=["unit:N", "kind:N", *TIMES, alt.Tooltip("bytes:Q", format=",")],
    )  # fmt: skip
    text = base.mark_text(fontSize=10, color="#ffffff").encode(x=alt.X("middle_ms:Q"), text="label:N")
    layers = [bars, text]
    if first:
        layers.append(_marks(alt, panel, start_s, y))
    return alt.layer(*layers).properties(
        width=WIDTH, height=ROW * len(lanes),
        title=alt.TitleParams(f"rank {panel[0].rank}", anchor="start", fontSize=13, color=INK),
    )  # fmt: skip


def _marks(alt: Any, panel: Sequence[Span], start_s: float, y: Any) -> Any:
    rows = [
        {
            "lane": lane_title(span.lane),
            "at_ms": 1e3 * ((span.start_s + span.end_s) / 2 - start_s),
            "letter": MARKS[what][0],
        }
        for what, span in examples(panel).items()
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=alt.X("at_ms:Q"), y=y)
    disc = base.mark_point(filled=True, size=170, color=MARK_COLOR, opacity=1, yOffset=-ROW * 0.42)
    return disc + base.mark_text(fontSize=10, fontWeight="bold", color="#ffffff", yOffset=-ROW * 0.42).encode(
        text="letter:N"
    )
