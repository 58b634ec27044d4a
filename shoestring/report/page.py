"""A run's record as one HTML page that needs nothing but itself (source: ours).

The order is that of trust: the answer, then how it came about, then everything down to the record
(the checklist after Drozdal et al., arXiv 2001.06509).
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from shoestring import __version__
from shoestring.base.errors import RecordError
from shoestring.base.files import write_whole
from shoestring.base.record import Events, read_events
from shoestring.report import formulas, job_view, tables
from shoestring.report.marks import Marker
from shoestring.report.record_view import RecordView, fingerprint, view_of

LOG = "events.jsonl"
PAGE = "report.html"
TABLE_ROWS = 200
WORKER_COLUMNS = (
    ("steps", "steps", "number"),
    ("samples", "samples", "number"),
    ("share of samples", "share", "percent"),
    ("batch time (median)", "compute_s", "duration"),
    ("samples a second of computing", "samples_per_s", "count"),
    ("exchange, of compute + exchange", "exchange_share", "percent"),
    ("peak memory", "memory_bytes", "bytes"),
)


def write_page(run_dir: Path, library: str | None = None) -> Path:
    """Render `report.html` in a run directory; returns its path.

    Args:
        library: JavaScript that defines `vegaEmbed`; made when not given.

    Raises:
        RecordError: the record cannot be read, or the page cannot be written.
    """
    page = run_dir / PAGE
    if library is None:
        from shoestring.report.library import vega_library  # seconds to load: only who writes a page pays

        library = vega_library()
    text = render(read_events(run_dir / LOG), library)
    try:
        write_whole(page, text.encode())
    except OSError as error:
        raise RecordError(f"cannot write the page {page}: {error}", "free some space there") from error
    return page


def render(log: Events, library: str) -> str:
    """The page of a record; `library` is JavaScript that defines `vegaEmbed`."""
    view = view_of(log)
    scripts = [library, asset("page.js")]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(asset("page.html"))
    return template.render(
        view=view,
        mark=Marker(view),
        tables=tables,
        formulas=formulas,
        job=job_view,
        charts=chart_scripts(view),
        result=tables.facts_of(view, view.last("result")),
        comparisons=tables.comparisons(view),
        data=tables.facts_of(view, view.last("data")),
        plan=tables.facts_of(view, view.last("plan"), frozenset({"sharding"})),
        sharding=tables.sharding(view),
        taken=tables.chosen(view),
        worker_columns=WORKER_COLUMNS,
        table_rows=TABLE_ROWS,
        style=Markup(asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=security_policy(scripts),
        record=f"{len(log.events)} {fingerprint(log)}",
        generator=f"shoestring {__version__}",
    )


def chart_names(view: RecordView) -> list[str]:
    """Every chart that the page could have, in order."""
    return [
        *(f"comparison:{n}" for n in range(len(tables.comparisons(view)))),
        *(f"job:{key}" for key in ("done", "per_s", "failed")),
        *(f"pool:{key}" for key in ("processes", "busy", "waiting")),
        *(f"metric:{name}" for name in view.metrics),
        *(f"rate:{name}" for name in view.counts or ("samples",)),
        "worker:compute_s",
        "worker:samples",
        "time_split",
        "timeline",
        "plan",
    ]


def chart_scripts(view: RecordView) -> dict[str, Markup]:
    """Chart name -> its specification as JSON that can stand in a script element."""
    from shoestring.report import charts  # Altair takes a second to load: only who draws pays

    made = {name: charts.chart(view, name) for name in chart_names(view)}
    return {name: Markup(json_for_script(spec)) for name, spec in made.items() if spec is not None}


def asset(name: str) -> str:
    """A file that stands beside this module."""
    return resources.files("shoestring.report").joinpath(name).read_text(encoding="utf-8")


def json_for_script(value: Any) -> str:
    """As JSON in which no text can end the script element that it stands in, or open a comment there."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False).replace("<", "\\u003c")


def security_policy(scripts: list[str]) -> str:
    """Nothing may be loaded, and no script may run but these two; Vega compiles its expressions."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed} 'unsafe-eval'; img-src data:"
