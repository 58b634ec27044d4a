"""The time-memory front: what each way to run a job would cost, as a page or a PNG (source: ours).

Takes plain data, so that whoever plans need not know of reports: one `Point` for each way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import altair as alt
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from shoestring.base.errors import ConfigError
from shoestring.base.files import write_whole
from shoestring.base.units import format_bytes, format_duration
from shoestring.report.page import asset

State = Literal["chosen", "possible", "dominated", "too large"]
# Seen on light and on dark paper, like the colours of `charts`.
COLORS: Mapping[str, str] = MappingProxyType(
    {"chosen": "#e07b39", "possible": "#2f6db5", "dominated": "#a9adb3", "too large": "#dd5061"}
)
SHAPES: Mapping[str, str] = MappingProxyType(
    {"chosen": "diamond", "possible": "circle", "dominated": "circle", "too large": "cross"}
)
LIMIT_COLOR = "#dd5061"
QUIET = "#626a73"
GIB_FROM = 4 * 2**30  # the axis counts GiB from there, MiB below
SIZE = (720, 400)  # of the plot, in pixels; a PNG has twice as many
LOG_FROM = 8  # slowest over fastest: from there a linear axis would hide the differences of the fast ones
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{{ style }}</style></head>
<body><header><p class="kicker">time and memory of every way</p><h1>{{ title }}</h1>
<p class="lead">{{ reason }}</p></header>
<main><figure data-chart="front">
<figcaption><span class="title">seconds a step over bytes a rank, down and left is better</span></figcaption>
<div class="plot" role="img" aria-label="step time over memory"></div>
<script type="application/json">{{ spec }}</script></figure>
<div class="scroll"><table><thead><tr><th>way</th><th>step</th><th>memory a
rank</th><th>state</th><th>why</th></tr> </thead><tbody>
{% for point in points %}
<tr{% if point.state == "chosen" %} class="taken"{% endif %}><td>{{ point.name }}</td><td>{{ point.step_s |
duration }}</td> <td>{{ point.memory_bytes | size }}</td><td>{{ point.state }}</td><td>{{ point.why
}}</td></tr> {% endfor %}
</tbody></table></div></main>
<noscript><p class="alert">The chart needs JavaScript; the table has all of it.</p></noscript>
{% for script in scripts %}<script>{{ script }}</script>{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Point:
    """One way to run the job.

    Attributes:
        step_s: predicted time of a step.
        memory_bytes: of one rank.
        state: `chosen`; `possible`; `dominated`, or not to be had for another reason; `too large` for the
            memory.
        why: what is to be said of it.
    """

    name: str
    step_s: float
    memory_bytes: int
    state: State
    why: str


def front_chart(points: Sequence[Point], limit_bytes: int) -> dict[str, Any]:
    """The Vega-Lite specification: the front as a line, all points, the memory limit as a vertical line.

    The limit is left out where it lies far beyond every point, for it would squeeze them together.
    """
    unit, unit_bytes = _unit(points)
    rows = [asdict(point) | {"size": point.memory_bytes / unit_bytes} for point in points]
    edge = [{"size": point.memory_bytes / unit_bytes, "step_s": point.step_s} for point in front(points)]
    fastest, slowest = min(point.step_s for point in points), max(point.step_s for point in points)
    kind: Literal["log", "linear"] = "log" if slowest > LOG_FROM * fastest else "linear"
    x = alt.X(
        "size:Q",
        title=f"memory a rank ({unit})",
        axis=alt.Axis(tickCount=8),
        scale=alt.Scale(zero=False, nice=True),
    )
    y = alt.Y("step_s:Q", title="time a step (s)", scale=alt.Scale(type=kind, zero=False, nice=True))
    states = list(COLORS)
    color = alt.Color(
        "state:N",
        title=None,
        scale=alt.Scale(domain=states, range=list(COLORS.values())),
        legend=alt.Legend(orient="top"),
    )
    shape = alt.Shape("state:N", title=None, scale=alt.Scale(domain=states, range=list(SHAPES.values())))
    tips = [
        alt.Tooltip("name:N", title="way"),
        alt.Tooltip("step_s:Q", title="s a step", format=".4~g"),
        alt.Tooltip("size:Q", title=f"{unit} a rank", format=",.4~g"),
        alt.Tooltip("state:N"),
        alt.Tooltip("why:N"),
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x, y=y)
    line = (
        alt.Chart(alt.InlineData(values=edge))
        .mark_line(interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 4], color=COLORS["possible"])
        .encode(x=x, y=y)
    )
    dots = base.mark_point(filled=True, size=90, opacity=0.9).encode(color=color, shape=shape, tooltip=tips)
    names = [
        base.transform_filter(f"(datum.state == 'dominated') == {faint}")
        .mark_text(align="left", dx=7, dy=-6, fontSize=9 if faint == "true" else 12)
        .encode(text="name:N", color=color)
        for faint in ("true", "false")
    ]
    layers = [line, dots, *names]
    if 0 < limit_bytes <= 2 * max(point.memory_bytes for point in points):
        layers.insert(0, _limit_line(limit_bytes, unit_bytes, x))
    spec: dict[str, Any] = (
        alt.layer(*layers).properties(width="container", height=SIZE[1]).to_dict(validate=False)
    )
    del spec["$schema"], spec["config"]
    return spec


def front(points: Sequence[Point]) -> list[Point]:
    """The ways that no other one of those to be had beats in both time and memory, smallest first."""
    found: list[Point] = []
    able = [point for point in points if point.state != "dominated"]
    for point in sorted(able, key=lambda point: (point.memory_bytes, point.step_s)):
        if not found or point.step_s < found[-1].step_s:
            found.append(point)
    return found


def front_page(points: Sequence[Point], limit_bytes: int, title: str, reason: str, library: str) -> str:
    """A page that needs nothing but itself: the chart and a table of all points.

    Args:
        library: JavaScript that defines `vegaEmbed` (`report.library`).
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": format_duration, "size": format_bytes}
    # No text of a plan can end the script element or open a comment in it.
    spec = json.dumps(front_chart(points, limit_bytes), allow_nan=False).replace("<", "\\u003c")
    return environment.from_string(TEMPLATE).render(
        title=title,
        reason=reason,
        points=points,
        spec=Markup(spec),
        style=Markup(asset("page.css")),
        scripts=[Markup(library), Markup(asset("page.js"))],
    )


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured for it.

    Raises:
        ConfigError: its name ends in neither .html nor .png.
    """
    if path.suffix not in (".html", ".png"):
        raise ConfigError(
            f"cannot draw {path}: neither .html nor .png", "name a file that ends in one of these"
        )


def write_front(path: Path, points: Sequence[Point], limit_bytes: int, title: str, reason: str) -> None:
    """Write the picture: HTML or PNG, by the end of the file's name.

    Raises:
        ConfigError: another end, or the file cannot be written.
    """
    check_picture(path)
    if path.suffix == ".png":
        content = front_png(points, limit_bytes, title)
    else:
        from shoestring.report.library import vega_library  # seconds to load: only who writes a page pays

        content = front_page(points, limit_bytes, title, reason, vega_library()).encode()
    try:
        write_whole(path, content)
    except OSError as error:
        said = f"cannot write {path}: {error.strerror}"
        raise ConfigError(said, "choose a place that can be written") from error


def front_png(points: Sequence[Point], limit_bytes: int, title: str) -> bytes:
    """The chart as a PNG on white paper."""
    import vl_convert  # half a second to load: only who draws pays

    axis = {"labelColor": QUIET, "titleColor": QUIET, "titleFontWeight": "normal", "gridColor": "#e4e2dc"}
    config = {"background": "#ffffff", "view": {"stroke": None}, "axis": axis, "padding": 12}
    spec = front_chart(points, limit_bytes) | {"width": SIZE[0], "title": title, "config": config}
    drawn: bytes = vl_convert.vegalite_to_png(json.dumps(spec), scale=2)
    return drawn


def _limit_line(limit_bytes: int, unit_bytes: int, x: Any) -> Any:
    rows = [{"size": limit_bytes / unit_bytes, "text": f"limit {format_bytes(limit_bytes)}"}]
    base = alt.Chart(alt.InlineData(values=rows)).encode(x=x)
    rule = base.mark_rule(strokeDash=[3, 3], strokeWidth=1.5, color=LIMIT_COLOR)
    text = base.mark_text(align="right", dx=-5, fontSize=11, color=LIMIT_COLOR).encode(
        text="text:N", y=alt.value(SIZE[1] - 9)
    )
    return rule + text


def _unit(points: Sequence[Point]) -> tuple[str, int]:
    large = max(point.memory_bytes for point in points) >= GIB_FROM
    return ("GiB", 2**30) if large else ("MiB", 2**20)
