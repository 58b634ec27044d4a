"""`shoestring export`."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from shoestring.commands.common import print_json
from shoestring.fleet.rundirs import find_run
from shoestring.jobs.pretrain.config import ready_of
from shoestring.jobs.pretrain.scoring import load_model
from shoestring.models.moe_lm.export import save_pretrained


def export(run: str, output: Path, runs_dir: Path, as_json: bool) -> int:
    """Write weights, configuration and tokenizer in the published layout; returns the exit code."""
    run_dir, _ = find_run(runs_dir, run)
    ready = ready_of(run_dir)
    model, step = load_model(run_dir, ready)
    output.mkdir(parents=True, exist_ok=True)
    save_pretrained(model, output)
    shutil.copy(ready.tokenizer, output / "tokenizer.json")
    if as_json:
        print_json({"run": run_dir.name, "step": step, "output": str(output)})
    else:
        click.echo(f"{run_dir.name}, step {step}: {output}")
    return 0
