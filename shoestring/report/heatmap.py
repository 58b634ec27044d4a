"""Links between workers as one HTML page that needs nothing but itself (source: ours).

Plain data in: this package knows nothing of clusters. Rows and columns follow the groups, so that islands are
squares on the diagonal, and each is outlined.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from shoestring import __version__
from shoestring.base.errors import RecordError
from shoestring.base.files import write_whole
from shoestring.base.units import format_bytes, format_duration
from shoestring.report.page import asset, json_for_script, security_policy

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{{ generator }}">
<title>{{ map.title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<p class="kicker">Shoestring probe</p>
<h1>{{ map.title }}</h1>
<p class="lead">{{ map.lead }}</p>
</header>
{% if map.suspects %}
<div class="alert"><p>Slow or faulty:</p>
<ul>{% for name, reason in map.suspects %}<li><strong>{{ name }}</strong>: {{ reason }}</li>{% endfor
%}</ul></div> {% endif %} {% if map.facts %} <dl class="facts">{% for name, value in map.facts %}<div><dt>{{
name }}</dt><dd>{{ value }}</dd></div> {% endfor %}</dl> {% endif %} <div class="charts"> {% for name, title,
spec in charts %} <figure data-chart="{{ name }}"><figcaption><span class="title">{{ title
}}</span></figcaption> <div class="plot"></div><script type="application/json">{{ spec }}</script></figure> {%
endfor %} </div> {% for table in map.tables %} <section><h2>{{ table.title }}</h2><div class="scroll"><table>
<thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead> <tbody>{% for row
in table.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr> {% endfor
%}</tbody></table></div></section> {% endfor %} {% for script in scripts %}<script>{{ script }}</script> {%
endfor %} </body> </html>
"""
CELL = 26
SMALLEST_MAP = 260
LABELLED = 40


@dataclass(frozen=True)
class TableView:
    """A table to print under the maps."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class HeatMap:
    """What the page shows.

    Attributes:
        title, lead: first lines.
        names: of the workers.
        groups: indices of `names`, group by group; every worker is in one.
        links: (worker, worker) -> (bytes/s each way, latency in s); pairs that were not measured are absent.
        suspects: (worker, why it is named).
        facts: (what, value) in words.
        tables: what stands below.
    """

    title: str
    lead: str
    names: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    links: dict[tuple[int, int], tuple[float, float]]
    suspects: tuple[tuple[str, str], ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[TableView, ...] = ()


def write_heatmap(page: Path, data: HeatMap, library: str | None = None) -> Path:
    """Render the page; it is there whole or not at all. Returns its path.

    Args:
        library: JavaScript that defines `vegaEmbed`; made when not given.

    Raises:
        RecordError: the page cannot be written.
    """
    if library is None:
        from shoestring.report.library import vega_library  # seconds to load: only who writes a page pays

        library = vega_library()
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_whole(page, render(data, library).encode())
    except OSError as error:
        raise RecordError(
            f"cannot write the page {page}: {error.strerror}", "choose another --page"
        ) from error
    return page


def render(data: HeatMap, library: str) -> str:
    """The page as text; `library` is JavaScript that defines `vegaEmbed`."""
    scripts = [library, asset("page.js")]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    drawn = (("bandwidth", "Bytes a second, each way"), ("latency", "Seconds of a small message, one way"))
    charts = [(name, title, Markup(json_for_script(chart(data, name)))) for name, title in drawn]
    return environment.from_string(TEMPLATE).render(
        map=data,
        charts=charts if data.links else [],
        style=Markup(asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=security_policy(scripts),
        generator=f"shoestring {__version__}",
    )


def chart(data: HeatMap, name: str) -> dict[str, Any]:
    """The Vega-Lite specification of a map: `bandwidth` or `latency`."""
    import altair as alt  # takes a second to load: only who draws pays

    places = [index for group in data.groups for index in group]
    rows = _cells(data, places, name)
    axis = _axis(alt, [data.names[index] for index in places], {suspect for suspect, _ in data.suspects})
    domain = alt.Scale(domain=[0, len(places)], nice=False, zero=False)
    down = alt.Scale(domain=[0, len(places)], nice=False, zero=False, reverse=True)
    x, y = alt.X("x:Q", title=None, axis=axis, scale=domain), alt.Y("y:Q", title=None, axis=axis, scale=down)
    scheme = "viridis" if name == "bandwidth" else "magma"
    color = alt.Color(
        "value:Q",
        title=None,
        scale=alt.Scale(type="log", scheme=scheme),
        legend=alt.Legend(orient="bottom", gradientLength=SMALLEST_MAP - 40, format=".2~s"),
    )
    tips = [alt.Tooltip("pair:N"), alt.Tooltip("text:N", title=name)]
    cells = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_rect(strokeWidth=0)
        .encode(x=x, y=y, x2="x2:Q", y2="y2:Q", color=color, tooltip=tips)
    )
    frames = (
        alt.Chart(alt.InlineData(values=_frames(data)))
        .mark_rect(filled=False, fillOpacity=0, strokeWidth=2.5, stroke="#e07b39")
        .encode(x=x, y=y, x2="x2:Q", y2="y2:Q", tooltip=[alt.Tooltip("group:N")])
    )
    side = max(SMALLEST_MAP, min(CELL, 1040 // max(1, len(places))) * len(places))
    spec: dict[str, Any] = (
        alt.layer(cells, frames).properties(width="container", height=side).to_dict(validate=False)
    )
    del spec["$schema"], spec["config"]
    return spec


def _cells(data: HeatMap, places: list[int], name: str) -> list[dict[str, Any]]:
    at = {index: place for place, index in enumerate(places)}
    rows = []
    for (one, other), (bytes_per_s, latency_s) in sorted(data.links.items()):
        value = bytes_per_s if name == "bandwidth" else latency_s
        text = f"{format_bytes(bytes_per_s)}/s" if name == "bandwidth" else format_duration(latency_s)
        for a, b in ((one, other), (other, one)):
            edges = {"x": at[a], "x2": at[a] + 1, "y": at[b], "y2": at[b] + 1}
            pair = f"{data.names[a]} - {data.names[b]}"
            rows.append({**edges, "value": float(f"{max(value, 1e-9):.4g}"), "pair": pair, "text": text})
    return rows


def _frames(data: HeatMap) -> list[dict[str, Any]]:
    rows, first = [], 0
    for number, group in enumerate(data.groups):
        last = first + len(group)
        rows.append({"x": first, "x2": last, "y": first, "y2": last, "group": f"group {number}"})
        first = last
    return rows


def _axis(alt: Any, names: list[str], suspects: set[str]) -> Any:
    """Names in the middle of their rows; a suspect's is marked. Too many to read: numbers."""
    step = max(1, -(-len(names) // LABELLED))
    told = [f"{name} (!)" if name in suspects else name for name in names]
    label = f"{json.dumps(told)}[floor(datum.value)]"
    return alt.Axis(
        values=[place + 0.5 for place in range(0, len(names), step)],
        labelExpr=label, grid=False, ticks=False, domain=False, labelFlush=False, labelAngle=0,
        labelOverlap=False, labelLimit=140,
    )  # fmt: skip
