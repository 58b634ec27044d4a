"""The planner's choice against the best of what was measured, over models, accumulation, links and memory.

The planner is told what a user's planner knows: the cluster as `shoestring probe` measures it, the compute
time of a micro-step and of an update without traffic, and the overlap model's coefficients, which are fitted
once on another model, another s and another link rate, never on the cells that are judged.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.common import ROOT, table
from benchmarks.network.arms import QUIET, Found, PartError, Place, Row, job_of, run_arms
from shoestring.cluster.calibrate import Measured, calibrate
from shoestring.cluster.costs import CPU_OVERLAP, JobCost, OverlapModel
from shoestring.cluster.planner import StrategyPlan, plan_strategy
from shoestring.cluster.strategies import BUILT, Layout, equal_groups, parse_strategy
from shoestring.cluster.topology import Cluster

MODELS = ("llama_8m", "llama_14m")
ACCUMULATIONS = (1, 4)
RATES = ("200mbit", "800mbit")
"""20:1 and 5:1 to what a host's loopback is shaped to."""
FITTED = ("llama_5m", 2, "400mbit")
"""Model, accumulation and rate that the coefficients are fitted on."""
NEAR = 1.35
"""Strategies within that of the best are measured again: regret is a matter of them."""
TURNS = 3
TURN_S = 2.5
"""A turn takes three steps, or more of them up to that time: what disturbs a short step is no shorter."""
LIMITS = ("none", "mid", "tight")
LENGTH = 32
SURVEYS = 2


@dataclass(frozen=True)
class Cell:
    """One model, s and link rate: what was measured, and what the planner is told.

    Attributes:
        found: all ten strategies.
        job: with measured compute and update times.
        cluster: as the probe saw it.
    """

    model: str
    accumulation: int
    rate: str
    found: Found
    job: JobCost
    cluster: Cluster
    layout: Layout

    def measured_s(self) -> dict[str, float]:
        """Median step by strategy, in s."""
        return {name: self.found.median_s(f"paro_{name}") for name in BUILT if self.found.of(f"paro_{name}")}


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    models, rates = (MODELS[:1], RATES[:1]) if quick else (MODELS, RATES)
    clusters = {rate: survey_of(Place(inter=rate)) for rate in {*rates, FITTED[2]}}
    fitted_on = _cells(FITTED[0], (FITTED[1],), FITTED[2], clusters[FITTED[2]], again=False)
    calibration = calibrate(
        [
            Measured(cell.job, parse_strategy(name), cell.layout, cell.cluster, step_s)
            for cell in fitted_on
            for name, step_s in cell.measured_s().items()
        ],
        CPU_OVERLAP,
    )
    print(f"fitted: error {calibration.error_before:.0%} -> {calibration.error:.0%}", flush=True)
    cells = [
        cell
        for model in models
        for rate in rates
        for cell in _cells(model, ACCUMULATIONS, rate, clusters[rate], again=not quick)
    ]
    rows, errors = [], []
    for cell in cells:
        more, missed = _judge(cell, calibration.model)
        rows += more
        errors += missed
    _show(rows)
    regrets = [row["regret"] for row in rows]
    figures = {
        "planner_regret_median": round(statistics.median(regrets), 4),
        "planner_regret_max": round(max(regrets), 4),
        "planner_error_median": round(statistics.median(error["error"] for error in errors), 4),
        "planner_cells": len(rows),
    }
    samples = {
        "rows": rows,
        "predictions": errors,
        "coefficients": calibration.model.model_dump(),
        "fitted_on": {"cell": FITTED, "error_before": calibration.error_before, "error": calibration.error},
        "clusters": {rate: cluster.model_dump() for rate, cluster in clusters.items()},
        "raw": [row for cell in [*fitted_on, *cells] for row in cell.found.rows],
        "failed": {f"{c.model} s={c.accumulation} {c.rate}": c.found.failed for c in [*fitted_on, *cells]},
    }
    flags = {"length": LENGTH, "near": NEAR, "turns": TURNS, "turn_s": TURN_S}
    return {"samples": samples, "figures": figures, "flags": flags}


def survey_of(place: Place) -> Cluster:
    """The cluster that the probe finds on test hosts: of SURVEYS the one with the quickest slow links, as
    others' work only takes away.

    Its hosts each report all cores of the machine that they share: that is put right here.
    """
    surveys = []
    with place.lab() as lab:
        for _ in range(SURVEYS):
            words = [sys.executable, "-m", "benchmarks.network.links", "20"]
            result = lab.run(words, 100.0, QUIET, ROOT).check()
            line = next((line for line in result.outputs[0].splitlines() if line.startswith("{")), "")
            if not line:
                raise PartError("the survey printed no cluster", "run benchmarks.network.links by the lab")
            surveys.append(Cluster.model_validate_json(line))
    cluster = max(surveys, key=lambda one: one.between.bytes_per_s)
    print(
        f"probe at {place.inter}: inside {cluster.inside.bytes_per_s / 1e6:.0f} MB/s, between "
        f"{cluster.between.bytes_per_s / 1e6:.1f} MB/s, card shared: {cluster.between.shared}",
        flush=True,
    )
    nodes = tuple(
        node.model_copy(
            update={
                "devices": tuple(
                    device.model_copy(update={"cores": max(1, device.cores // place.hosts)})
                    for device in node.devices
                )
            }
        )
        for node in cluster.nodes
    )
    return cluster.model_copy(update={"nodes": nodes})


def _cells(
    model: str, accumulations: tuple[int, ...], rate: str, cluster: Cluster, again: bool
) -> list[Cell]:
    place = Place(inter=rate)
    layout = equal_groups(place.hosts * place.ranks, place.ranks)
    founds: dict[int, Found] = {}
    for accumulation in accumulations:
        print(f"planner, {model}, s={accumulation}, {rate}", flush=True)
        flags = {"model": model, "accumulation": accumulation, "length": LENGTH, "warmup": 1}
        found = run_arms(place, [f"paro_{name}" for name in BUILT], {**flags, "steps": 2}, 300.0)
        there = [arm for arm in (f"paro_{name}" for name in BUILT) if found.of(arm)]
        if again and there:
            least_s = min(found.median_s(arm) for arm in there)
            near = [arm for arm in there if found.median_s(arm) <= NEAR * least_s]
            steps = max(3, round(TURN_S / least_s))
            found.rows += run_arms(place, near, {**flags, "steps": steps}, 300.0, TURNS).rows
        founds[accumulation] = found
    micro_s, update_s = compute_times([row for found in founds.values() for row in found.rows], layout)
    return [
        Cell(
            model, accumulation, rate, found,
            job_of(found.rows[0]).model_copy(update={"compute_s": micro_s, "update_s": update_s}),
            cluster, layout,
        )
        for accumulation, found in founds.items() if found.rows
    ]  # fmt: skip


def compute_times(rows: list[Row], layout: Layout) -> tuple[float, float]:
    """Seconds of a micro-step, and of the update of everything by one rank, from steps without traffic.

    A step of s micro-steps that updates one of d parts takes s micro + update / d. Where s is the same in
    all rows, the parts tell them apart; least squares over all, neither below a microsecond.
    """
    points = [
        (
            float(row["setup"]["accumulation"]),
            1.0 / layout.parts(parse_strategy(row["arm"][-3:]).states),
            float(row["compute_only_s"]),
        )
        for row in rows
    ]
    ss, sd, dd = (sum(a * b for a, b in pairs) for pairs in (
        [(s, s) for s, _, _ in points], [(s, d) for s, d, _ in points], [(d, d) for _, d, _ in points],
    ))  # fmt: skip
    st, dt = sum(s * t for s, _, t in points), sum(d * t for _, d, t in points)
    determinant = ss * dd - sd * sd
    if determinant <= 1e-9:
        return max(1e-6, st / ss), 1e-6
    return (
        max(1e-6, (st * dd - dt * sd) / determinant),
        max(1e-6, (dt * ss - st * sd) / determinant),
    )


def _judge(cell: Cell, model: OverlapModel) -> tuple[list[Row], list[Row]]:
    """A row for each memory limit, and a prediction for each strategy."""
    measured = cell.measured_s()
    free = plan_strategy(cell.job, cell.cluster, cell.layout, 2**40, overlap=model)
    built = {row.name: row for row in free.rows if row.choosable and row.name in measured}
    sizes = sorted(row.memory_bytes for row in built.values())
    limits = {"none": 2**40, "mid": sizes[len(sizes) // 2], "tight": sizes[2]}
    rows = []
    for title in LIMITS:
        plan = plan_strategy(cell.job, cell.cluster, cell.layout, limits[title], overlap=model)
        rows.append(_regret(cell, plan, title, measured))
    predictions = [
        {
            "model": cell.model, "accumulation": cell.accumulation, "rate": cell.rate, "strategy": name,
            "predicted_s": row.step_s, "measured_s": measured[name],
            "error": abs(row.step_s / measured[name] - 1),
        }
        for name, row in built.items()
    ]  # fmt: skip
    return rows, predictions


def _regret(cell: Cell, plan: StrategyPlan, title: str, measured: dict[str, float]) -> Row:
    fitting = {row.name: measured[row.name] for row in plan.rows if row.fits and row.name in measured}
    best = min(fitting, key=lambda name: fitting[name])
    return {
        "model": cell.model, "accumulation": cell.accumulation, "rate": cell.rate, "memory": title,
        "memory_limit_bytes": plan.memory_limit_bytes, "chosen": plan.strategy, "best": best,
        "chosen_s": measured[plan.strategy], "best_s": fitting[best], "predicted_s": plan.chosen.step_s,
        "regret": measured[plan.strategy] / fitting[best] - 1, "reason": plan.reason,
    }  # fmt: skip


def _show(rows: list[Row]) -> None:
    table(
        ["model", "s", "rate", "memory", "chosen", "s", "best", "s", "regret", "predicted s"],
        [
            [
                row["model"], str(row["accumulation"]), row["rate"], row["memory"], row["chosen"],
                f"{row['chosen_s']:.3f}", row["best"], f"{row['best_s']:.3f}", f"{row['regret']:.1%}",
                f"{row['predicted_s']:.3f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
