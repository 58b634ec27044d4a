"""`shoestring plan`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes, format_duration
from shoestring.cluster.planner import StrategyPlan, StrategyRow
from shoestring.cluster.workers import Plan
from shoestring.commands.common import load_job, load_recipe, print_json
from shoestring.report import front

SURVIVAL = {
    "whole": "yes",
    "masters": "parameters, no moments",
    "lost": "no: back to the checkpoint",
}
WIDE = 120  # columns of a terminal; a narrower one shows what decides, without the details
DETAILS = frozenset({"compute", "network", "exposed", "of it states", "card"})


def plan(
    recipe: str, sets: tuple[str, ...], toml_files: tuple[Path, ...], picture: Path | None, as_json: bool
) -> int:
    """Show what a recipe would do on this machine and what else was weighed.

    With several workers the strategies are shown, too.

    Args:
        picture: where to draw time over memory, `.html` or `.png`; None: nowhere.

    Raises:
        ConfigError: the recipe has no plan, nothing fits, or the picture cannot be written.
    """
    if picture is not None:
        front.check_picture(picture)
    job = load_job(load_recipe(recipe, toml_files, sets))
    made = getattr(job, "plan", None)
    if made is None:
        raise ConfigError(
            f"the job {job.config.job!r} has no plan", "run it; its record holds what was decided"
        )
    chosen: Plan = made()
    strategies = chosen.sharding if chosen.workers > 1 else None
    if picture is not None:
        _draw(picture, chosen, strategies)
    if as_json:
        print_json(chosen.model_dump())
        return 0
    console = Console()
    show_workers(chosen, console)
    if strategies:
        show_strategies(strategies, console)
    if picture is not None:
        console.print(f"time over memory: {picture}")
    return 0


def show_workers(chosen: Plan, console: Console) -> None:
    """The ways to split this machine into workers."""
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


def show_strategies(plan: StrategyPlan, console: Console) -> None:
    """All 27 strategies as a table, those that can be had first, fastest first.

    In one group, or on a narrow terminal, only those.
    """
    groups = f"{len(plan.groups)} group{'s' * (len(plan.groups) > 1)} of {len(plan.groups[0])}"
    console.print(f"[bold]{plan.strategy}[/bold] for {groups} ranks: {plan.reason}")
    rows = _in_order(plan)
    if len(plan.groups) == 1 or console.width < WIDE:
        rows = [row for row in rows if row.choosable]
    columns: list[tuple[str, Callable[[StrategyRow], str]]] = [
        ("strategy", lambda row: row.name),
        ("step", lambda row: format_duration(row.step_s)),
        ("compute", lambda row: format_duration(row.compute_s)),
        ("network", lambda row: format_duration(row.communication_s)),
        ("exposed", lambda row: format_duration(row.exposed_s)),
        ("memory a rank", lambda row: format_bytes(row.memory_bytes)),
        ("of it states", lambda row: format_bytes(row.states_bytes)),
        ("card", lambda row: format_bytes(row.card_bytes)),
        ("price a step", lambda row: f"{row.price:.3g}"),
        ("survives a lost rank", lambda row: SURVIVAL[row.survives]),
        ("why not", _said),
    ]
    hidden = set() if any(row.price for row in plan.rows) else {"price a step"}
    hidden |= DETAILS if console.width < WIDE else set()
    columns = [(title, show) for title, show in columns if title not in hidden]
    table = Table(*(title for title, _ in columns))
    for row in rows:
        style = "bold" if row.name == plan.strategy else None if _state(row, plan) == "possible" else "dim"
        table.add_row(*(show(row) for _, show in columns), style=style)
    console.print(table)
    if len(rows) < len(plan.rows):
        console.print("The rest are not built, or other names of these here; --json has all.")


def front_page(plan: StrategyPlan) -> str:
    """The page of the time-memory front of a plan."""
    from shoestring.report.library import vega_library  # seconds to load: only who writes a page pays

    title = f"{plan.strategy} for {len(plan.groups)} groups of {len(plan.groups[0])} ranks"
    return front.front_page(points_of(plan), plan.memory_limit_bytes, title, plan.reason, vega_library())


def points_of(plan: StrategyPlan) -> list[front.Point]:
    """The rows of a plan as points of the picture; other names of the same strategy are left out."""
    return [
        front.Point(row.name, row.step_s, row.memory_bytes, _state(row, plan), _said(row))
        for row in _in_order(plan)
        if not row.same_as or row.name == plan.strategy
    ]


def _draw(picture: Path, chosen: Plan, strategies: StrategyPlan | None) -> None:
    if strategies:
        points, limit_bytes, reason = points_of(strategies), strategies.memory_limit_bytes, strategies.reason
        title = (
            f"{strategies.strategy} for {len(strategies.groups)} groups of {len(strategies.groups[0])} ranks"
        )
    else:
        points, limit_bytes, reason = _worker_points(chosen), 0, chosen.reason
        title = f"{chosen.workers} workers x {chosen.threads} threads"
    front.write_front(picture, points, limit_bytes, title, reason)


def _worker_points(chosen: Plan) -> list[front.Point]:
    return [
        front.Point(
            way.name,
            way.step_s,
            way.memory_bytes,
            "possible" if way.rejected else "chosen",
            way.rejected or "chosen",
        )
        for way in chosen.alternatives
    ]


def _state(row: StrategyRow, plan: StrategyPlan) -> front.State:
    if row.name == plan.strategy:
        return "chosen"
    if row.dominated or not row.choosable:
        return "dominated"
    return "possible" if row.fits else "too large"


def _said(row: StrategyRow) -> str:
    if not row.rejected:
        return "chosen"
    parts = [row.rejected]
    if row.dominated and row.dominated not in row.rejected and not row.same_as:
        parts.append(row.dominated)
    return "; ".join(parts)


def _in_order(plan: StrategyPlan) -> list[StrategyRow]:
    return sorted(plan.rows, key=lambda row: (bool(row.same_as), not row.built, row.step_s))
