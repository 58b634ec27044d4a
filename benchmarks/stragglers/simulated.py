"""What does not fit on two cores: the simulator held to the real runs, and a month of a thousand workers.

`python -m benchmarks.stragglers.simulated --workers 1000 --days 30` draws the month.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import altair as alt

from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.sim.contention import Contention, Machines, Outcome, Simulation, simulate

DAY_S = 86_400.0
STEP_S = 120.0
SPEED = 10.0
MONTH = Contention(
    noise=0.05,
    burst_every_s=12 * 3600.0,
    burst_s=3600.0,
    burst_slow=(1.5, 4.0),
    bad_places=0.02,
    bad_slow=3.0,
    turns_bad_every_s=20 * DAY_S,
    evicted_every_s=10 * DAY_S,
    away_s=300.0,
    reform_s=10.0,
)
"""What shared clusters are like: somebody's job disturbs a worker for an hour twice a day, a worker loses its
place every ten days, one place in fifty is three times slower for good, and places turn so after weeks."""
CROWDS = (100, 1000, 10_000)
PACE = {"interval_s": 240.0, "short_window_s": 1200.0, "long_window_s": 4 * 3600.0}


def calibrate(
    runs: dict[str, list[dict[str, Any]]], batch: int, configs: dict[str, ControlConfig]
) -> dict[str, Any]:
    """Predict each arm's time from the static run of the same seed, and compare.

    Args:
        runs: arm -> runs of one case; `none` among them.
        batch: samples of a step.
        configs: arm -> its control settings.

    Returns:
        Arm -> real and predicted seconds of each seed; and the median error of all.
    """
    static = {run["seed"]: run for run in runs["none"]}
    found: dict[str, Any] = {}
    errors = []
    for arm, config in configs.items():
        for run in runs[arm]:
            if run["seed"] not in static:
                continue
            predicted_s = _predict(static[run["seed"]], batch, config, len(run["step_s"]), run["seed"])
            real_s = sum(run["step_s"])
            found.setdefault(arm, []).append(
                {"seed": run["seed"], "real_s": real_s, "predicted_s": predicted_s}
            )
            errors.append(abs(predicted_s / real_s - 1.0))
    return {"runs": found, "error_median": statistics.median(errors) if errors else None}


def _predict(static: dict[str, Any], batch: int, config: ControlConfig, steps: int, seed: int) -> float:
    workers = sorted(static["compute_s_of"])
    half = slice(len(static["step_s"]) // 2, None)
    took = {w: static["compute_s_of"][w][half] for w in workers}
    rates = {w: [s / n for s, n in zip(took[w], static["samples_of"][w][half], strict=True)] for w in workers}
    medians = {w: statistics.median(values) for w, values in rates.items()}
    noise = statistics.median(statistics.pstdev(rates[w]) / medians[w] for w in workers)
    slowest_s = statistics.median(max(step) for step in zip(*took.values(), strict=True))
    exchange_s = statistics.median(static["step_s"][half]) - slowest_s
    machines = Machines(
        speeds=tuple(1 / medians[w] for w in workers), batch=batch, exchange_s=max(0.0, exchange_s)
    )
    world = Simulation(machines, Contention(noise=noise), config, seed, 1e9)
    while world.outcome.steps < steps:
        world.step()
    return sum(world.outcome.step_s)


def month(workers: int, days: float, seed: int = 0) -> dict[str, Any]:
    """Goodput under `nd` and under `none`, on the same seed, and what was decided when."""
    machines = _machines(workers)
    found: dict[str, Any] = {"workers": workers, "days": days, "contention": asdict(MONTH), "pace": PACE}
    for policy in ("nd", "none"):
        began_s = perf_counter()
        run = simulate(machines, MONTH, ControlConfig(policy=policy, **PACE), seed, days * DAY_S)
        found[policy] = {
            "goodput": run.samples_per_s / sum(machines.speeds),
            "steps": run.steps,
            "took_s": perf_counter() - began_s,
            "splits": sum(any(a.kind == "adjust_batch" for a in d.actions) for _, d in run.decisions),
            "restarts": len(run.restarts),
            "needless_restarts": run.needless,
            "hourly": _hourly(run),
        }
    found["nd_vs_static"] = found["nd"]["goodput"] / found["none"]["goodput"]
    return found


def crowds(sizes: Sequence[int] = CROWDS, hours: float = 6.0, seed: int = 0) -> list[dict[str, Any]]:
    """Goodput of some hours of the month under `nd`, `none` and both `nd` and backup workers, by workers."""
    rows = []
    for count in sizes:
        machines = _machines(count)
        goodput = {}
        for policy in ("nd", "nd-backup", "none"):
            options = PolicyOptions(backups=max(1, count // 20))
            config = ControlConfig(policy=policy, options=options, **PACE)
            run = simulate(machines, MONTH, config, seed, 3600.0 * hours)
            goodput[policy] = run.samples_per_s / sum(machines.speeds)
        rows.append(
            {"workers": count, "hours": hours, **goodput, "nd_vs_static": goodput["nd"] / goodput["none"]}
        )
    return rows


def _machines(workers: int) -> Machines:
    return Machines(
        speeds=(SPEED,) * workers, batch=int(SPEED * STEP_S) * workers, exchange_s=2.0, most=10**9
    )


def _hourly(run: Outcome) -> list[dict[str, float]]:
    """By the hour: part of the time that steps took at full speed, splits and restarts."""
    now_s, hours = 0.0, [{"hour": 0.0, "step_s": 0.0, "steps": 0.0, "splits": 0.0, "restarts": 0.0}]
    for step_s in run.step_s:
        now_s += step_s
        while now_s >= (len(hours)) * 3600.0:
            hours.append(
                {"hour": float(len(hours)), "step_s": 0.0, "steps": 0.0, "splits": 0.0, "restarts": 0.0}
            )
        hours[-1]["step_s"] += step_s
        hours[-1]["steps"] += 1
    for at_s, decision in run.decisions:
        hour = hours[min(len(hours) - 1, int(at_s // 3600.0))]
        hour["splits"] += any(action.kind == "adjust_batch" for action in decision.actions)
    for at_s, _ in run.restarts:
        hours[min(len(hours) - 1, int(at_s // 3600.0))]["restarts"] += 1
    return hours


def draw(found: dict[str, Any], path: Path) -> None:
    """Speed of both policies over the month, and what `nd` did."""
    rows = [
        {"day": hour["hour"] / 24, "policy": policy, "speed": STEP_S * hour["steps"] / hour["step_s"]}
        for policy in ("nd", "none")
        for hour in found[policy]["hourly"]
        if hour["step_s"]
    ]
    acts = [
        {"day": hour["hour"] / 24, "what": what, "count": hour[what]}
        for hour in found["nd"]["hourly"]
        for what in ("splits", "restarts")
        if hour[what]
    ]
    speed = (
        alt.Chart(alt.Data(values=rows), width=760, height=240)
        .mark_line(strokeWidth=1)
        .encode(
            x=alt.X("day:Q", title="day"),
            y=alt.Y("speed:Q", title="speed, undisturbed = 1", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("policy:N", title=""),
        )
    )
    done = (
        alt.Chart(alt.Data(values=acts), width=760, height=80)
        .mark_tick(thickness=1)
        .encode(
            x=alt.X("day:Q", title="day"),
            y=alt.Y("what:N", title=""),
            color=alt.Color("count:Q", title="in an hour"),
        )
    )
    (speed & done).properties(title=f"{found['workers']} workers, simulated").save(str(path))


def main() -> None:
    """Simulate and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--picture", default="", help="an HTML file")
    options = parser.parse_args()
    found = month(options.workers, options.days)
    if options.picture:
        draw(found, Path(options.picture))
    for policy in ("nd", "none"):
        found[policy].pop("hourly")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
