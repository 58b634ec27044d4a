"""Part `even`: the ledger's shards against an even split of the rows among workers, by skew of their cost."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.common import table
from benchmarks.infer import data
from benchmarks.infer.arms import Job, folder, quotas, run_ours
from benchmarks.infer.check import Same
from benchmarks.infer.samples import Arm, Row, ratio, rounds, spread

WORKERS = 4
CORES = 0.38
"""Of each worker's process that computes: four, and all that moves rows, fit on two cores."""
SKEWS, QUICK_SKEWS = (0, 1, 2, 3, 4), (0, 3)
FILES = 32
BATCH = 8
TIMEOUT_S = 170.0
UNEQUAL = (0.45, 0.45, 0.45, 0.15)
"""Cores where one worker is slow and all rows cost the same."""


def measure(quick: bool, count: int, first: int) -> dict[str, Any]:
    """Samples: each skew, both ways; every round has other costs."""
    runs: list[Row] = []
    failed: dict[str, str] = {}
    rows = 6_000 if quick else 12_000
    print(f"even: {rows} rows on {WORKERS} workers", flush=True)
    for number in range(first, first + count):
        for skew in QUICK_SKEWS if quick else SKEWS:
            more, lost = _both(f"skew {skew}", skew, (CORES,) * WORKERS, rows, number)
            runs += more
            failed |= lost
        more, lost = _both("one slow", 0, UNEQUAL, rows, number)
        runs += more
        failed |= lost
    _show(runs)
    if quick:
        print("even: half the rows of a full run: what does not grow with them weighs twice as much")
    return {
        "rows": rows,
        "workers": WORKERS,
        "cores": CORES,
        "unequal": UNEQUAL,
        "runs": runs,
        "failed": failed,
    }


def _both(
    label: str, skew: float, cores: tuple[float, ...], rows: int, number: int
) -> tuple[list[Row], dict[str, str]]:
    with folder() as place, quotas(cores) as places:
        data.write_costs(place / "in", data.costs(rows, FILES, skew, 100 + number), FILES)
        job = Job(place / "in", rows, "Compute", BATCH, Same(rows, "value"), processes=1, places=places)
        workers: dict[str, Any] = {
            "fleet": {"members": {"workers": WORKERS}}, "pools": {"load": 1, "write": 1},
            "stage": {"batch": BATCH},
        }  # fmt: skip
        split = {"shards": {"rows": -(-rows // WORKERS), "ahead": 1}, "flags": ["--fixed"]}
        arms: dict[str, Arm] = {
            f"{label}, ledger": partial(_run, job, workers),
            f"{label}, even": partial(_run, job, {**workers, **split}),
        }
        return rounds(arms, 1, number, "even")


def _run(job: Job, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    found = run_ours(job, TIMEOUT_S, how)
    pids = {call.pid for call in found.calls}
    busy = sorted(round(sum(c.took_s for c in found.calls if c.pid == pid), 2) for pid in pids)
    return found, {"busy_s": busy, "processes": len(pids)}


def figures(runs: list[Row]) -> dict[str, Any]:
    """Time of the even split over the ledger's, by skew; `ledger_vs_even` is that at skew 3."""
    found: dict[str, Any] = {
        f"ledger_vs_even_{skew}": ratio(runs, f"skew {skew}, even", f"skew {skew}, ledger") for skew in SKEWS
    }
    found["ledger_vs_even_one_slow"] = ratio(runs, "one slow, even", "one slow, ledger")
    found["ledger_vs_even"] = found["ledger_vs_even_3"]
    return {key: value for key, value in found.items() if value is not None}


def _show(runs: list[Row]) -> None:
    labels = list(dict.fromkeys(run["arm"].rpartition(",")[0] for run in runs))
    table(
        ["even", "even split s (from, to)", "ledger s (from, to)", "ratio"],
        [
            [label, str(spread(runs, f"{label}, even")), str(spread(runs, f"{label}, ledger")),
             str(ratio(runs, f"{label}, even", f"{label}, ledger"))]
            for label in labels
        ],
    )  # fmt: skip
