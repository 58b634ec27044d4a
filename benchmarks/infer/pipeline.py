"""Part `pipeline`: fetch from a rate-limited store, predict, put back. `elastic`: how soon it is right."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.infer import data, ours
from benchmarks.infer.arms import folder
from benchmarks.infer.check import Same
from benchmarks.infer.diary import calls, row_s
from benchmarks.infer.samples import Arm, Row, median, ratio, rounds, spread
from benchmarks.infer.server import serving
from benchmarks.infer.tree import run_child

GET_S, PUT_S = 0.002, 0.0008
"""Of the store, for a row on one connection."""
BATCH = 20
STAGES = ("fetch", "predict", "put")
TIMEOUT_S = 170.0
FIXED = {"pools": {"load": 1, "write": 1}}
NEAR = 0.9


def measure(quick: bool, count: int, first: int) -> dict[str, Any]:
    """Samples: a plain loop, ours with one process of each stage, ours as it comes."""
    rows = 1_600 if quick else 6_000
    with folder() as place, serving(GET_S, PUT_S) as port:
        data.write_ids(place / "in", rows, 8)
        source, same = place / "in", Same(rows, "stored")
        arms: dict[str, Arm] = {
            "loop": partial(_loop, source, same, port),
            "ours, one of each": partial(_ours, source, same, port, dict.fromkeys(STAGES, 1), FIXED),
            "ours": partial(_ours, source, same, port, {}, {}),
        }
        print(f"pipeline: {rows} rows", flush=True)
        runs, failed = rounds(arms, count, first, "pipeline")
    _show(runs)
    if quick:
        print("pipeline: a quarter of the rows of a full run: starting processes weighs four times as much")
    return {
        "rows": rows, "batch": BATCH, "get_s": GET_S, "put_s": PUT_S, "runs": runs, "failed": failed
    }  # fmt: skip


def figures(runs: list[Row], rows: int) -> dict[str, Any]:
    """Ratios of times at work, and the part of the bound sum t / max t that one of each reaches."""
    found: dict[str, Any] = {
        "pipeline_vs_naive": ratio(runs, "loop", "ours"),
        "pipeline_one_vs_naive": ratio(runs, "loop", "ours, one of each"),
        "pipeline_vs_naive_whole": ratio(runs, "loop", "ours", "took_s"),
    }
    times = {name: median(runs, "loop", f"{name}_s") for name in STAGES}
    if all(value is not None for value in times.values()):
        found |= {f"pipeline_{name}_ms": round(1e3 * float(value or 0), 4) for name, value in times.items()}
        of_loop = [[run[f"{name}_s"] for name in STAGES] for run in runs if run["arm"] == "loop"]
        found["pipeline_bound"] = round(statistics.median(sum(t) / max(t) for t in of_loop), 3)
        singles = {run["round"]: run["work_s"] for run in runs if run["arm"] == "ours, one of each"}
        loops = {
            run["round"]: max(run[f"{name}_s"] for name in STAGES) for run in runs if run["arm"] == "loop"
        }
        shares = [rows * loops[n] / singles[n] for n in sorted(set(loops) & set(singles))]
        found["pipeline_of_bound"] = round(statistics.median(shares), 4) if shares else None
    return {key: value for key, value in found.items() if value is not None}


# --- elastic --------------------------------------------------------------------------------------


def elastic(quick: bool, count: int, first: int) -> dict[str, Any]:
    """The same job with fixed numbers of processes, and as the controller does it from one each on."""
    rows = 3_000 if quick else 12_000
    fetches, predicts = ((3, 5), (1, 2)) if quick else ((1, 2, 3, 4, 6), (1, 2))
    with folder() as place, serving(GET_S, PUT_S) as port:
        data.write_ids(place / "in", rows, 8)
        data.write_ids(place / "short", rows // 4, 8)
        short, long = Same(rows // 4, "stored"), Same(rows, "stored")
        arms: dict[str, Arm] = {
            f"{f} fetch, {p} predict": partial(
                _ours, place / "short", short, port, {"fetch": f, "predict": p, "put": 2}, FIXED
            )
            for f in fetches
            for p in predicts
        }
        fixed, failed = rounds(arms, 1 if quick else count, first, "elastic")
        for run in fixed:
            run["rows_per_s"] = round(rows / 4 / run["work_s"], 1)
        best = max((run["rows_per_s"] for run in fixed), default=0.0)
        controlled: dict[str, Arm] = {"controlled": partial(_controlled, place / "in", long, port)}
        runs, more = rounds(controlled, count, first, "elastic")
    for run in runs:
        run |= settled(run["timeline"], best)
    found = {
        "rows": rows,
        "fixed": fixed,
        "best_rows_per_s": best,
        "runs": fixed + runs,
        "failed": failed | more,
    }
    for run in runs:
        print(
            f"  controlled: near the best after {run['near_s']} s, {run['late_rows_per_s']} rows/s of {best}"
        )
        for change in run["changes"]:
            print(f"    {change}")
    return found


def settled(timeline: list[list[float]], best: float) -> dict[str, Any]:
    """When the pace was first within 10% of the best, for 1 s, and the pace after that.

    Args:
        timeline: (seconds at work, rows put by then), in order.
    """
    near_s = None
    rates = [(a[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in itertools.pairwise(timeline) if b[0] > a[0]]
    for at_s, rate in rates:
        if rate >= NEAR * best:
            near_s = at_s
            break
    late = [point for point in timeline if near_s is not None and point[0] >= near_s]
    pace = (late[-1][1] - late[0][1]) / (late[-1][0] - late[0][0]) if len(late) > 1 else None
    return {
        "near_s": None if near_s is None else round(near_s, 2),
        "late_rows_per_s": None if pace is None else round(pace, 1),
    }


def elastic_figures(found: dict[str, Any]) -> dict[str, Any]:
    """Time to the best allotment's pace, and the part of that pace that is kept."""
    runs = [run for run in found["runs"] if run["arm"] == "controlled"]
    near = [run["near_s"] for run in runs if run["near_s"] is not None]
    if len(near) < len(runs) or not runs:
        return {"elastic_settled_runs": len(near), "elastic_runs": len(runs)}
    late = [run["late_rows_per_s"] / found["best_rows_per_s"] for run in runs if run["late_rows_per_s"]]
    return {
        "elastic_settled_runs": len(near), "elastic_runs": len(runs),
        "elastic_settle_s": round(statistics.median(near), 2),
        "elastic_of_best": round(statistics.median(late), 3) if late else None,
    }  # fmt: skip


def _controlled(source: Path, same: Same, port: int) -> tuple[Any, dict[str, Any]]:
    found, more = _ours(source, same, port, {}, {})
    began_s = min(call.began_s for call in found.calls)
    puts = sorted(
        (call.began_s + call.took_s - began_s, call.items) for call in found.calls if call.stage == "put"
    )
    timeline, done, mark = [[0.0, 0.0]], 0, 1.0
    for at_s, items in puts:
        while at_s >= mark:
            timeline.append([mark, float(done)])
            mark += 1.0
        done += items
    changes = [
        f"{event['wall_s'] - began_s:.1f} s: {event['pool'] if 'pool' in event else ''} {event['reason']}"
        for event in found.record
        if event["kind"] == "decision" and event["wall_s"] >= began_s
    ]
    return found, {**more, "timeline": timeline, "changes": changes}


# --- runs ------------------------------------------------------------------------------------------


def _ours(
    source: Path, same: Same, port: int, processes: dict[str, int], more: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    with folder() as place:
        diary = place / "diary"
        options = {"fetch": {"port": port}, "predict": {}, "put": {"port": port}}
        stages = [
            ours.stage(
                name.capitalize(), options={**options[name], "diary": str(diary)}, batch=BATCH,
                processes=processes[name] if name in processes else 0,
            )
            for name in STAGES
        ]  # fmt: skip
        settings = ours.config(source, place / "out", stages, **more)
        found = ours.run(settings, place, diary, TIMEOUT_S)
        same.check(place / "out")
        return found, _times(found.calls)


def _loop(source: Path, same: Same, port: int) -> tuple[Any, dict[str, Any]]:
    with folder() as place:
        settings = {
            "source": str(source), "sink": str(place / "out"), "port": port, "batch": BATCH,
            "diary": str(place / "diary"),
        }  # fmt: skip
        (place / "loop.json").write_text(json.dumps(settings))
        words = [sys.executable, "-m", "benchmarks.infer.loops", "pipeline", str(place / "loop.json")]
        found = ours.ran(run_child(words, TIMEOUT_S), calls(place / "diary"), place / "out")
        same.check(place / "out")
        return found, _times(found.calls)


def _times(noted: Any) -> dict[str, float]:
    """Seconds of a row in each stage, and processes that each stage had."""
    times: dict[str, float] = {f"{name}_s": round(row_s(noted, name), 7) for name in STAGES}
    return times | {f"{name}_processes": len({c.pid for c in noted if c.stage == name}) for name in STAGES}


def _show(runs: list[Row]) -> None:
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    table(
        ["pipeline", "s at work (from, to)", "start s", *(f"{name} ms" for name in STAGES), "processes"],
        [
            [arm, str(spread(runs, arm)), f"{median(runs, arm, 'start_s'):.2f}",
             *(f"{1e3 * (median(runs, arm, f'{name}_s') or 0):.3f}" for name in STAGES),
             "/".join(f"{median(runs, arm, f'{name}_processes'):g}" for name in STAGES)]
            for arm in arms
        ],
    )  # fmt: skip
