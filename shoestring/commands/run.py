"""`shoestring run`, and `shoestring resume` of what it has started."""

from __future__ import annotations

from pathlib import Path

from shoestring.base.clock import SystemClock
from shoestring.commands.common import load_job, load_recipe, reload_config
from shoestring.commands.ending import conclude
from shoestring.fleet.launch import Outcome
from shoestring.fleet.rundirs import About, new_run_dir
from shoestring.report.terminal import LiveView
from shoestring.train.runs import resume as resume_run
from shoestring.train.runs import start


def run(
    recipe: str, sets: tuple[str, ...], toml_files: tuple[Path, ...], name: str, runs_dir: Path, as_json: bool
) -> int:
    """Start a run of a recipe; returns the exit code."""
    job = load_job(load_recipe(recipe, toml_files, sets))
    clock = SystemClock()
    run_dir = new_run_dir(runs_dir, recipe, name, clock)
    with LiveView(run_dir.name, quiet=as_json) as view:
        view.say(f"run {run_dir.name} in {run_dir}")
        outcome = start(job, recipe, run_dir, clock, view)
    return _conclude(run_dir, outcome, as_json)


def resume(
    run_dir: Path, about: About, toml_files: tuple[Path, ...], sets: tuple[str, ...], as_json: bool
) -> int:
    """Go on with a training run; returns the exit code."""
    job = load_job(reload_config(run_dir, about, toml_files, sets))
    with LiveView(run_dir.name, quiet=as_json) as view:
        view.say(f"resuming {run_dir.name}")
        outcome = resume_run(job, about, run_dir, SystemClock(), view)
    return _conclude(run_dir, outcome, as_json)


def _conclude(run_dir: Path, outcome: Outcome, as_json: bool) -> int:
    checkpoints = sorted((run_dir / "checkpoints").glob("step-????????"))
    made = {"checkpoint": str(checkpoints[-1]) if checkpoints else ""}
    said = [f"checkpoint: {made['checkpoint'] or 'none'}"]
    return conclude(run_dir, outcome, made, as_json, outcome.status == "interrupted", said)
