"""`shoestring generate`."""

from __future__ import annotations

from pathlib import Path

import click

from shoestring.commands.common import print_json
from shoestring.fleet.rundirs import find_run
from shoestring.jobs.pretrain.scoring import write_text


def generate(
    run: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    runs_dir: Path,
    as_json: bool,
) -> int:
    """Let the model of a run go on with a text; returns the exit code."""
    run_dir, _ = find_run(runs_dir, run)
    text = write_text(run_dir, prompt, tokens, temperature, top_p, seed)
    if as_json:
        print_json({"run": run_dir.name, "prompt": prompt, "text": text, "seed": seed})
    else:
        click.echo(text)
    return 0
