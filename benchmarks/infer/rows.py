"""Part `rows`: ten million small rows through a stage that does next to nothing."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from benchmarks.common import table
from benchmarks.infer import data
from benchmarks.infer.arms import RUNNERS, Job, folder, peers_ready
from benchmarks.infer.check import Same
from benchmarks.infer.ours import Ran
from benchmarks.infer.samples import Arm, Row, median, ratio, rounds, spread

MILLION = 1_000_000
FILES = 40
TIMEOUT_S = 240.0
LOOK_S = 0.5
RAY = {"blocks": 40}
LONG = 6
"""Times as many rows in the run whose memory is looked at."""


def measure(quick: bool, count: int, first: int, long: bool = False) -> dict[str, Any]:
    """Samples. `long`: only ours, and several times the rows."""
    rows = (2 if quick else 10 * (LONG if long else 1)) * MILLION
    files = FILES * (LONG if long else 1)
    with folder() as place:
        data.write_small(place / "in", rows, files)
        job = Job(place / "in", rows, "Double", 65_536, Same(rows, "value", _doubled))
        arms: dict[str, Arm] = {"ours": partial(_run, "ours", job, {})}
        if not long:
            peers_ready()
            arms["ray"] = partial(_run, "ray", job, RAY)
            arms["pool"] = partial(_run, "pool", job, {})
        print(f"rows: {rows:,}", flush=True)
        runs, failed = rounds(arms, count, first, "rows")
    _show(runs)
    return {"rows": rows, "files": files, "runs": runs, "failed": failed}


def _doubled(ids: Any) -> Any:
    """What `Double` makes of the rows of `data.write_small`."""
    return ids % 1000 * 2.0


def figures(runs: list[Row]) -> dict[str, Any]:
    """Rows a second, the coordinator's share of a core, and of ratios those of times at work."""
    found: dict[str, Any] = {
        "rows_per_s": median(runs, "ours", "rows_per_s"),
        "coordinator_cpu_share": median(runs, "ours", "coordinator_share"),
        "rows_vs_ray": ratio(runs, "ray", "ours"),
        "rows_vs_mp": ratio(runs, "pool", "ours"),
        "rows_peak_mb": median(runs, "ours", "peak_mb"),
    }
    return {key: value for key, value in found.items() if value is not None}


def long_figures(runs: list[Row]) -> dict[str, Any]:
    """Of the long run: seconds at work, and memory of its second half over that of its first."""
    mine = [run for run in runs if run["arm"] == "ours"]
    if not mine:
        return {}
    return {
        "rows_long_s": round(statistics.median(run["work_s"] for run in mine), 1),
        "rows_long_per_s": round(statistics.median(run["rows_per_s"] for run in mine)),
        "rows_memory_growth": round(statistics.median(run["growth"] for run in mine), 3),
        "rows_long_coordinator_cpu_share": median(mine, "ours", "coordinator_share"),
    }


def growth(memory: list[float]) -> float:
    """Mean of the last third over the mean of the middle third: the first one fills queues."""
    third = len(memory) // 3
    if not third:
        return float("nan")
    return statistics.fmean(memory[-third:]) / statistics.fmean(memory[third : 2 * third])


def _run(peer: str, job: Job, how: dict[str, Any]) -> tuple[Ran, dict[str, Any]]:
    found = RUNNERS[peer](job, TIMEOUT_S, how, LOOK_S)
    began_s = min(call.began_s for call in found.calls)
    assert found.finished is not None
    seen = [one for one in found.finished.seen if began_s <= one.at_s <= began_s + found.work_s]
    memory = [round(one.pss_bytes / 1e6) for one in seen]
    more: dict[str, Any] = {
        "rows_per_s": round(job.rows / found.work_s), "memory_mb": memory,
        "growth": round(growth([float(one) for one in memory]), 3),
    }  # fmt: skip
    if len(seen) > 1:
        spent_s = {
            role: round((seen[-1].by_role[role] - before) / (seen[-1].at_s - seen[0].at_s), 4)
            for role, before in seen[0].by_role.items()
            if role
        }
        more["cores_by_role"] = spent_s
        if "coordinator" in spent_s:
            more["coordinator_share"] = spent_s["coordinator"]
    return found, more


def _show(runs: list[Row]) -> None:
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    table(
        ["rows", "s at work (from, to)", "rows/s", "start s", "MB", "growth"],
        [
            [arm, str(spread(runs, arm)), f"{median(runs, arm, 'rows_per_s'):,.0f}",
             f"{median(runs, arm, 'start_s'):.2f}", f"{median(runs, arm, 'peak_mb'):.0f}",
             f"{median(runs, arm, 'growth'):.3f}"]
            for arm in arms
        ],
    )  # fmt: skip
    for run in runs:
        if "cores_by_role" in run and run["arm"] == "ours":
            print(f"  cores by role: {run['cores_by_role']}")
