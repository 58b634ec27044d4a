"""`shoestring report`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from shoestring.commands.common import print_json
from shoestring.fleet.rundirs import find_run
from shoestring.report.page import write_page
from shoestring.report.verify import verify_page


def report(run: str, verify: bool, runs_dir: Path, as_json: bool) -> int:
    """Write the page of a run; with `verify`, recompute what an existing page shows."""
    run_dir, _ = find_run(runs_dir, run)
    page = run_dir / "report.html"
    if not verify or not page.exists():
        page = write_page(run_dir)
    if not verify:
        print_json({"report": str(page)}) if as_json else click.echo(str(page))
        return 0
    checks = verify_page(run_dir, page)
    wrong = [check for check in checks if not check.ok]
    if as_json:
        print_json({"report": str(page), "figures": len(checks), "wrong": [asdict(check) for check in wrong]})
    else:
        for check in wrong:
            click.secho(
                f"{check.figure}: the page says {check.on_page}, the record {check.recomputed}", fg="red"
            )
        click.echo(f"{len(checks) - len(wrong)} of {len(checks)} figures on {page} recompute from the record")
    return 1 if wrong else 0
