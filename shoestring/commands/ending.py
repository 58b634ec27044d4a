"""What commands that ran something say at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from shoestring.base.record import read_events
from shoestring.commands.common import print_json
from shoestring.fleet.launch import Outcome
from shoestring.report.page import write_page


def conclude(
    run_dir: Path | None,
    outcome: Outcome,
    made: Mapping[str, str],
    as_json: bool,
    resumes: bool,
    said: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> int:
    """Write the page, and say how it ended and where everything is; returns the exit code.

    Args:
        run_dir: None: the output was there already, and nobody here knows its run.
        made: what it has made -> where that is, for `as_json`.
        resumes: whether `shoestring resume` is what to do next.
        said: lines about it for a person.
        facts: its result, where no run is at hand that has it in its record.
    """
    page = write_page(run_dir) if run_dir is not None else None
    if as_json:
        results = read_events(run_dir / "events.jsonl").of("result") if run_dir is not None else []
        where = {
            "run": run_dir.name if run_dir is not None else "",
            **made,
            "report": str(page or ""),
            "exit_code": outcome.exit_code,
            "result": results[-1] if results else dict(facts or {}),
        }
        print_json(asdict(outcome) | where)
        return outcome.exit_code
    if outcome.error:
        click.secho(outcome.error, fg="red", bold=True, err=True)
        click.echo(f"what to do: {outcome.todo}", err=True)
    if resumes and run_dir is not None:
        why = "interrupted; " if outcome.status == "interrupted" else ""
        click.echo(f"{why}go on with: shoestring resume {run_dir.name} --runs-dir {run_dir.parent}")
    for line in said:
        click.echo(line)
    if page is not None:
        click.echo(f"report:     {page}")
    return outcome.exit_code
