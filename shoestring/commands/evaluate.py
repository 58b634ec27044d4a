"""`shoestring evaluate`."""

from __future__ import annotations

from pathlib import Path

from shoestring.base.record import RunRecord
from shoestring.commands.common import print_json
from shoestring.fleet.rundirs import find_run
from shoestring.jobs.pretrain.scoring import score_run
from shoestring.report.page import write_page
from shoestring.report.terminal import LiveView


def evaluate(run: str, runs_dir: Path, as_json: bool) -> int:
    """Score the newest checkpoint of a run beside its baselines; the record and the page get the figures."""
    run_dir, _ = find_run(runs_dir, run)
    record = RunRecord(run_dir / "events.jsonl", "evaluate")
    with LiveView(run_dir.name, quiet=as_json) as view:
        result = score_run(run_dir, record, view)
    record.append("result", **result)
    record.close()
    write_page(run_dir)
    if as_json:
        print_json({"run": run_dir.name} | result)
    return 0
