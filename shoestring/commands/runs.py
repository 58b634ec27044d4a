"""`shoestring runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shoestring.base.record import read_events
from shoestring.commands.common import print_json
from shoestring.train.runs import ABOUT, find_run


def runs(runs_dir: Path, as_json: bool) -> int:
    """List the runs of a directory, newest last."""
    rows = [
        _row(path.parent) for path in sorted(runs_dir.glob(f"*/{ABOUT}"), key=lambda p: p.stat().st_mtime)
    ]
    if as_json:
        print_json(rows)
        return 0
    if not rows:
        Console().print(f"no runs in {runs_dir}; start one with: shoestring run demo")
        return 0
    table = Table("run", "recipe", "status", "steps", "loss", "faults", "checkpoint")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("run", "recipe", "status", "steps", "loss", "faults", "checkpoint"))
        )
    Console().print(table)
    return 0


def _row(run_dir: Path) -> dict[str, Any]:
    _, about = find_run(run_dir.parent, run_dir.name)
    log = run_dir / "events.jsonl"
    events = read_events(log) if log.exists() else None
    steps = events.of("step") if events else []
    last = [event for event in events.events if event["kind"] in ("run", "end")][-1:] if events else []
    checkpoints = sorted((run_dir / "checkpoints").glob("step-????????"))
    return {
        "run": about.name,
        "recipe": about.recipe,
        "status": last[0]["status"] if last and last[0]["kind"] == "end" else "running or killed",
        "steps": steps[-1]["step"] if steps else 0,
        "loss": round(steps[-1]["metrics"]["loss"], 4) if steps else None,
        "faults": len(events.of("fault")) if events else 0,
        "checkpoint": str(checkpoints[-1]) if checkpoints else "",
    }
