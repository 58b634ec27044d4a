"""`shoestring runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shoestring.base.record import Events, read_events
from shoestring.commands.common import INFER, print_json
from shoestring.fleet.rundirs import ABOUT, About, find_run
from shoestring.report.job_view import TELLING, totals_of

TRAINED = ("run", "recipe", "status", "steps", "loss", "faults", "checkpoint")
INFERRED = ("run", "status", "rows", "done", "failed", "faults", "output")


def runs(runs_dir: Path, as_json: bool) -> int:
    """List the runs of a directory, newest last."""
    rows = [
        _row(path.parent) for path in sorted(runs_dir.glob(f"*/{ABOUT}"), key=lambda p: p.stat().st_mtime)
    ]
    if as_json:
        print_json(rows)
        return 0
    if not rows:
        Console().print(f"no runs in {runs_dir}; start one with: shoestring run demo, or shoestring infer")
        return 0
    for keys in (TRAINED, INFERRED):
        same = [row for row in rows if row.keys() == set(keys)]
        if not same:
            continue
        table = Table(*keys)
        for row in same:
            table.add_row(*(str(row[key]) for key in keys))
        Console().print(table)
    return 0


def _row(run_dir: Path) -> dict[str, Any]:
    _, about = find_run(run_dir.parent, run_dir.name)
    log = run_dir / "events.jsonl"
    events = read_events(log) if log.exists() else None
    last = [event for event in events.events if event["kind"] in ("run", "end")][-1:] if events else []
    status = last[0]["status"] if last and last[0]["kind"] == "end" else "running or killed"
    faults = len(events.of("fault")) if events else 0
    if about.job == INFER:
        return _inferred(about, events, status, faults)
    steps = events.of("step") if events else []
    checkpoints = sorted((run_dir / "checkpoints").glob("step-????????"))
    return {
        "run": about.name,
        "recipe": about.recipe,
        "status": status,
        "steps": steps[-1]["step"] if steps else 0,
        "loss": round(steps[-1]["metrics"]["loss"], 4) if steps else None,
        "faults": faults,
        "checkpoint": str(checkpoints[-1]) if checkpoints else "",
    }


def _inferred(about: About, events: Events | None, status: str, faults: int) -> dict[str, Any]:
    """A job over rows: how many of them are done, and where the output is."""
    data, known, begun = (events.of(*kinds) if events else [] for kinds in (("data",), TELLING, ("run",)))
    done = totals_of(known[-1]) if known else {"rows": 0, "failed": 0}
    return {
        "run": about.name,
        "status": status,
        "rows": data[-1]["rows"] if data else 0,
        "done": done["rows"],
        "failed": done["failed"],
        "faults": faults,
        "output": begun[-1]["settings"]["sink"]["path"] if begun else "",
    }
