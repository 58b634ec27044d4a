"""A job of ours in a process of its own: `python -m benchmarks.infer.job CONFIG.json RUN_DIR [FLAGS]`.

`--resume` goes on with it. `--fixed` hands out ranges as an even split does: no smaller shards at the end,
and nobody gives any back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from shoestring.base.clock import SystemClock
from shoestring.fleet import shard_policy
from shoestring.fleet.messages import Status
from shoestring.fleet.rundirs import find_run, new_run_dir
from shoestring.infer import runs
from shoestring.infer.config import InferConfig


class View:
    """Says all to standard output."""

    def say(self, text: str) -> None:
        """See runs.View."""
        print(text, flush=True)

    def status(self, status: Status) -> None:
        """See runs.View: nothing is shown."""


def fixed() -> None:
    """For the coordinator, which is forked from this process: shards as large as asked, and they stay."""
    shard_policy.shard_rows = lambda usual, todo, workers: usual
    shard_policy.give_back = lambda held, idle: ({}, "")


def main(config_path: str, run_dir: str, *flags: str) -> int:
    """Run it, or go on with it; the exit code."""
    config = InferConfig.model_validate_json(Path(config_path).read_text())
    if "--fixed" in flags:
        fixed()
    clock, view, folder = SystemClock(), View(), Path(run_dir)
    if "--resume" in flags:
        path, about = find_run(folder.parent, folder.name)
        outcome = runs.resume(config, about, path, clock, view)
    else:
        checked = runs.check(config, view.say)
        outcome = runs.start(
            checked, "infer", new_run_dir(folder.parent, "infer", folder.name, clock), clock, view
        )
    print(json.dumps({"status": outcome.status, "error": outcome.error}), flush=True)
    return 0 if outcome.status == "finished" else 1


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
