"""`shoestring plan`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes, format_duration
from shoestring.cluster.planner import Plan
from shoestring.commands.common import load_job, load_recipe, print_json


def plan(recipe: str, sets: tuple[str, ...], toml_files: tuple[Path, ...], as_json: bool) -> int:
    """Show what a recipe would do on this machine and what else was weighed."""
    job = load_job(load_recipe(recipe, toml_files, sets))
    made = getattr(job, "plan", None)
    if made is None:
        raise ConfigError(
            f"the job {job.config.job!r} has no plan", "run it; its record holds what was decided"
        )
    chosen: Plan = made()
    if as_json:
        print_json(chosen.model_dump())
        return 0
    console = Console()
    console.print(f"[bold]{chosen.workers} workers x {chosen.threads} threads[/bold]: {chosen.reason}")
    table = Table("way", "step", "compute", "exchange", "memory", "survives a lost worker", "why not")
    for way in chosen.alternatives:
        table.add_row(
            way.name,
            format_duration(way.step_s),
            format_duration(way.compute_s),
            format_duration(way.exchange_s),
            format_bytes(way.memory_bytes),
            "yes" if way.survives_a_worker else "no: back to the checkpoint",
            way.rejected or "chosen",
        )
    console.print(table)
    return 0
