"""Runs a recipe as a user would and keeps the figures of its record."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import finish, table
from shoestring.base.record import Events, read_events

KEYS = {
    "model": "bits_per_byte",
    "xz -9e, each file alone": "xz_per_file",
    "xz -9e, all files in one archive": "xz_archive",
    "n-gram (Kneser-Ney and memory)": "ngram",
}


def measure(recipe: str, name: str, quick_sets: tuple[str, ...]) -> None:
    """Run `recipe` (or read the record of a finished run of it) and write benchmarks/results/NAME.json."""
    parser = argparse.ArgumentParser(description=f"The recipe {recipe} from text to score")
    parser.add_argument(
        "--quick", action="store_true", help="a few steps only, below 50 s: its scores mean nothing"
    )
    parser.add_argument("--run", type=Path, help="take the record of this finished run instead of a new one")
    options = parser.parse_args()
    if options.run:
        report(name, recipe, options.run)
        return
    with tempfile.TemporaryDirectory() as runs:
        sets = [part for one in quick_sets if options.quick for part in ("--set", one)]
        command = [
            sys.executable,
            "-m",
            "shoestring",
            "run",
            recipe,
            "--name",
            "bench",
            "--runs-dir",
            runs,
            *sets,
        ]
        subprocess.run(command, check=True)
        report(name, recipe, Path(runs) / "bench", options.quick)


def report(name: str, recipe: str, run_dir: Path, quick: bool = False) -> None:
    """Figures of one finished run, each from its record."""
    events = read_events(run_dir / "events.jsonl")
    begun = events.of("run")[-1]
    if begun["recipe"] != recipe or events.of("end")[-1]["status"] != "finished":
        raise SystemExit(f"{run_dir} is not a finished run of {recipe}")
    figures = _figures(events)
    table(["figure", "value"], [[key, f"{value:,.4g}"] for key, value in figures.items()])
    samples = {
        "evaluation": [{"name": e["name"], "value": e["value"]} for e in events.of("evaluation")],
        "losses": [round(e["metrics"]["loss"], 4) for e in events.of("step")],
        "rounds": [
            {"members": e["members"], "reform_s": e["reform_s"], "reason": e["reason"]}
            for e in events.of("round")
        ],
    }
    finish(name, {"recipe": recipe, "quick": quick, "settings": begun["settings"]}, samples, figures)


def _figures(events: Events) -> dict[str, Any]:
    steps, data = events.of("step"), events.of("data")[-1]
    scores = {KEYS[e["name"]]: e["value"] for e in events.of("evaluation")}
    tokens = sum(step["counts"]["tokens"] for step in steps)
    trained_s = steps[-1]["wall_s"] - steps[0]["wall_s"]
    reforms = [e["reform_s"] for e in events.of("round")[1:]]
    return scores | {
        "steps": len(steps),
        "tokens": tokens,
        "tokens_per_s": sum(step["counts"]["tokens"] for step in steps[1:]) / trained_s,
        "train_s": trained_s,
        "step_s_median": statistics.median(step["took_s"] for step in steps),
        "reform_s_worst": max(reforms, default=0.0),
        "workers_killed": sum(1 for e in events.of("fault") if "drill" in e),
        "parameters": data["parameters"],
        "active_parameters": data["active_parameters"],
        "heldout_bytes": data["heldout_bytes"],
        "train_bytes": data["train_bytes"],
    }
