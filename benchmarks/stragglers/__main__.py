"""`make bench-stragglers`: time to a number of samples among stragglers, ours against others (root only).

Arms alternate within each seed. Speeds come from CPU quotas, one thread a worker, never from sleeps. What a
machine of two cores cannot hold (thousands of workers, a month) is simulated, by the real controller.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from benchmarks.common import RESULTS, ROOT, commit, end_in_order, finish, table
from benchmarks.lab import require
from benchmarks.network.arms import PartError, child
from benchmarks.stragglers import ddp, scale
from benchmarks.stragglers.kept import Kept
from benchmarks.stragglers.places import CASES, FULL, SLOW, WORKERS
from benchmarks.stragglers.run import ASYNCHRONOUS, BATCH, MICRO_BATCH, control
from benchmarks.stragglers.simulated import CROWDS, calibrate, crowds, draw, month
from shoestring.control.balance import Part, balance
from shoestring.sim.conformance import measure as measure_policy

Plan = tuple[tuple[str, tuple[str, ...], int], ...]
"""Cases, the arms of each, the steps of a run."""
KEPT = ROOT / ".bench" / "stragglers"
KEYS = ("vs_static", "vs_lb_bsp", "vs_ddp", "overhead", "dd_gap_to_bound", "edit_vs_sync", "false_restarts")
OURS_AND_PEERS = ("none", "nd", "nd-backup", "lb-bsp", "backup", "asp", "asp-apart", *ddp.KINDS)
PLAN: Plan = (
    ("persistent", OURS_AND_PEERS, 60),
    ("transient", OURS_AND_PEERS, 30),
    ("both", OURS_AND_PEERS, 30),
    ("even", ("none", "nd"), 60),
    ("three speeds", ("none", "dd"), 60),
    ("turns slow", ("nd",), 150),
    ("slow link", ("none", "edit"), 120),
    ("slow link and random", ("none", "nd", "edit"), 120),
    ("slow link and fixed", ("none", "nd", "edit"), 120),
)
QUICK_PLAN: Plan = (("persistent", ("none", "nd"), 12),)
SEEDS = 5
MANY, DAYS = 1000, 30.0
"""Workers and days of the simulated month."""
TARGET_LOSS = 0.5
"""Nats, of the training loss: a fifth of what it is at first."""
TOLD = 4
"""Decisions of a run that are kept, of the first ones; the record says how many there were."""
LATE = 0.5
"""Part of the steps at the end, over which a settled split is judged."""
TIMEOUT_S = 500.0

Runs = dict[str, dict[str, list[dict[str, Any]]]]


def main() -> None:
    """Measure, show, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one case, one seed, few steps")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--only", default="", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--arms", default="", help="some of the arms")
    parser.add_argument("--month", action="store_true", help="simulate the month anew, also with --add")
    parser.add_argument("--scale", action="store_true", help="measure decisions of thousands anew, likewise")
    parser.add_argument(
        "--add",
        action="store_true",
        help="to the recorded runs of other cases and arms, taken in the same settings",
    )
    options = parser.parse_args()
    require("ip", "tc")
    end_in_order()
    seeds = 1 if options.quick else options.seeds
    setting = {
        "seeds": seeds, "workers": WORKERS, "full_cores": FULL, "slow": SLOW, "batch": BATCH,
        "micro_batch": MICRO_BATCH,
    }  # fmt: skip
    earlier = _recorded(setting) if options.add else _Recorded({}, {}, None, None)  # before hours of work
    chosen = options.only.split(",") if options.only else list(CASES)
    kept = options.arms.split(",") if options.arms else [arm for _, arms, _ in PLAN for arm in arms]
    plan = (
        QUICK_PLAN
        if options.quick
        else tuple(
            (case, tuple(arm for arm in arms if arm in kept), steps)
            for case, arms, steps in PLAN
            if case in chosen
        )
    )
    runs, failed = _measure(plan, seeds, None if options.quick else Kept(KEPT, setting))
    today = f"{commit()[:7]}, {datetime.now(UTC):%Y-%m-%d}"
    taken = {f"{case}, {arm}": today for case, arms in runs.items() for arm in arms}
    runs, taken = _joined(earlier.runs, runs), earlier.taken | taken
    _show(runs)
    quality = measure_policy("nd", seeds=5 if options.quick else 20)
    figures = dict.fromkeys(KEYS) | figures_of(runs) | {"false_restarts": quality.false_restarts}
    samples: dict[str, Any] = {"runs": runs, "failed": failed, "calibration": _calibration(runs)}
    if (error := samples["calibration"]["error_median"]) is not None:
        figures["simulation_error_median"] = round(error, 4)
    samples["taken"] = taken
    figures["arms_taken_apart"] = _apart(taken)
    samples["month"] = None if options.month else earlier.month
    if samples["month"] is None:
        samples["month"] = month(*((100, 0.2) if options.quick else (MANY, DAYS)))
        samples["month"]["crowds"] = crowds(CROWDS[:1] if options.quick else CROWDS)
        if not options.quick:
            draw(samples["month"], ROOT / "docs" / "month.png")
    samples["scale"] = None if options.scale else earlier.scale
    if samples["scale"] is None:
        samples["scale"] = scale.measure(scale.SIZES[:2] if options.quick else scale.SIZES)
        scale.show(samples["scale"])
    figures |= _of_scale(samples["scale"])
    crowd = samples["month"]["crowds"] if "crowds" in samples["month"] else []
    figures |= {f"crowd_vs_static_{row['workers']}": round(row["nd_vs_static"], 3) for row in crowd}
    figures["month_vs_static"] = round(samples["month"]["nd_vs_static"], 3)
    configuration = {
        "quick": options.quick, **setting, "plan": _plan_of(runs),
    }  # fmt: skip
    finish("stragglers", configuration, samples, figures)


def _measure(plan: Plan, seeds: int, kept: Kept | None) -> tuple[Runs, dict[str, str]]:
    """All runs of the plan, and what failed of them. Those that are kept from before are not run again."""
    runs: Runs = {case: {arm: [] for arm in arms} for case, arms, _ in plan}
    failed: dict[str, str] = {}
    for seed in range(seeds):
        for case, arms, steps in plan:
            for arm in arms if seed % 2 == 0 else arms[::-1]:
                words = [arm, case, str(seed), str(steps)]
                run = kept.find(words) if kept else None
                if run is None:
                    try:
                        run = _lean(child("benchmarks.stragglers.run", words, TIMEOUT_S))
                    except PartError as error:
                        failed[f"{case}, {arm}, seed {seed}"] = str(error)
                        print(f"  {case}, {arm}, seed {seed} failed: {str(error)[-300:]}", flush=True)
                        continue
                    if kept:
                        kept.add(words, run)
                runs[case][arm].append(run)
                print(f"  {case:14} {arm:8} seed {seed}: {run['took_s']:.1f} s", flush=True)
    return runs, failed


def _plan_of(runs: Runs) -> list[tuple[str, list[str], list[int]]]:
    """Each case, its arms, and the steps of its runs."""
    return [
        (case, list(arms), sorted({run["steps"] for taken in arms.values() for run in taken}))
        for case, arms in runs.items()
    ]


def _lean(run: dict[str, Any]) -> dict[str, Any]:
    """Of workers keep only what figures are made of, rounded, by step: the record is kept in the
    repository."""
    steps = run.pop("workers") if "workers" in run else []
    names = sorted({name for step in steps for name in step})
    for what, digits in (("samples", 0), ("compute_s", 4)):
        run[what + "_of"] = {
            name: [round(step[name][what], digits or None) if name in step else None for step in steps]
            for name in names
        }
    decisions = run["decisions"] if "decisions" in run else []
    if len(decisions) > TOLD:
        run["decisions"], run["decisions_in_all"] = decisions[:TOLD], len(decisions)
    for series in ("step_s", "ends_s", "losses"):
        run[series] = [round(value, 5) for value in run[series]] if series in run else []
    return run


@dataclass(frozen=True)
class _Recorded:
    """Runs by case and arm, when and of which commit each arm was taken, the simulated month, what decisions
    cost."""

    runs: Runs
    taken: dict[str, str]
    month: dict[str, Any] | None
    scale: list[dict[str, Any]] | None


def _recorded(setting: dict[str, Any]) -> _Recorded:
    """What the record has, if it was taken in this very setting."""
    path = RESULTS / "stragglers.json"
    if not path.exists():
        return _Recorded({}, {}, None, None)
    record = json.loads(path.read_text())
    other = {
        name: record["configuration"][name]
        for name in setting
        if record["configuration"][name] != setting[name]
    }
    if other:
        raise SystemExit(f"the recorded runs were taken with {other}, not {setting}: run all cases anew")
    before = f"{record['commit'][:7]}, {record['when'][:10]}"
    runs: Runs = record["samples"]["runs"]
    known = record["samples"]["taken"] if "taken" in record["samples"] else {}
    when = {
        f"{case}, {arm}": known[case] if case in known else before
        for case, arms in runs.items()
        for arm in arms
    }
    when |= {name: told for name, told in known.items() if name in when}
    samples = record["samples"]
    month, costs = (samples[name] if name in samples else None for name in ("month", "scale"))
    return _Recorded(runs, when, month, costs)


def _joined(earlier: Runs, runs: Runs) -> Runs:
    """Arms that were run now take the place of those that were run before."""
    return earlier | {
        case: (earlier[case] if case in earlier else {})
        | {arm: found for arm, found in arms.items() if found}
        for case, arms in runs.items()
    }


def _calibration(runs: Runs) -> dict[str, Any]:
    """The simulator's time of each arm where one worker is slow, from what the static run shows."""
    arms = runs["persistent"] if "persistent" in runs else {}
    if "none" not in arms:
        return {"runs": {}, "error_median": None}
    configs = {arm: control(arm, "persistent") for arm in arms if arm not in (*ddp.KINDS, *ASYNCHRONOUS)}
    return calibrate(arms, BATCH, configs)


def figures_of(runs: Runs) -> dict[str, Any]:
    """Ratios of times, medians over seeds of the ratios within one seed."""
    found: dict[str, Any] = {}
    for case in ("persistent", "transient", "both"):
        key = "" if case == "persistent" else f"_{case}"
        for other, name in (
            ("none", "vs_static"), ("lb-bsp", "vs_lb_bsp"), ("backup", "vs_backup"), ("ddp", "vs_ddp"),
            ("asp", "vs_asp"), ("asp-apart", "vs_asp_apart"), ("torchelastic", "vs_torchelastic"),
            ("torchft", "vs_torchft"),
        ):  # fmt: skip
            found[f"{name}{key}"] = _ratio(runs, case, other, "nd")
            found[f"nd_backup_{name}{key}"] = _ratio(runs, case, other, "nd-backup")
        for arm in ("nd", "nd-backup", "asp", "ddp"):
            found[f"{arm.replace('-', '_')}_to_loss_vs_static{key}"] = _to_loss_ratio(runs, case, arm)
            found[f"{arm.replace('-', '_')}_loss{key}"] = _loss_gap(runs, case, arm)
    linked = {"slow link and random": "", "slow link and fixed": "_fixed", "slow link": "_even"}
    for case, key in linked.items():
        found[f"edit_vs_sync{key}"] = _ratio(runs, case, "none", "edit")
        found[f"edit_vs_nd{key}"] = _ratio(runs, case, "nd", "edit")
        found[f"edit_loss{key}"] = _loss_gap(runs, case, "edit")
    even = _ratio(runs, "even", "nd", "none")
    found["overhead"] = round(even - 1.0, 4) if even is not None else None
    found["dd_vs_static"] = _ratio(runs, "three speeds", "none", "dd")
    found["dd_gap_to_bound"] = _gap(runs, by_step=True)
    found["dd_gap_of_medians"] = _gap(runs, by_step=False)
    slow = runs["turns slow"]["nd"] if "turns slow" in runs else []
    times = [recovery_s(run) for run in slow]
    if times:
        found["restart_recovered_runs"] = sum(map(math.isfinite, times))
        middle_s = statistics.median(times)
        found["restart_recovery_s"] = round(middle_s, 1) if math.isfinite(middle_s) else None
    return {key: value for key, value in found.items() if value is not None}


def _apart(taken: dict[str, str]) -> list[str]:
    """Arms that did not alternate with their case's `none`: they are of another commit or day than it."""
    bases = {name: f"{name.rpartition(', ')[0]}, none" for name in taken}
    return sorted(name for name, base in bases.items() if base in taken and taken[base] != taken[name])


def _of_scale(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of a decision, and of the coordinator for a step, by workers."""
    found = {}
    for row in rows:
        for key in ("nd_ms", "dd_ms", "step_ms", "message_us"):
            found[f"scale_{key}_{row['workers']}"] = row[key]
    return found


def _ratio(runs: Runs, case: str, over: str, under: str) -> float | None:
    """Median over seeds of the one's time per sample over the other's: backup workers do fewer a step."""
    if case not in runs or not {over, under} <= set(runs[case]):
        return None
    times = [
        {run["seed"]: run["took_s"] / run["samples"] for run in runs[case][arm]} for arm in (over, under)
    ]
    both = sorted(set(times[0]) & set(times[1]))
    return round(statistics.median(times[0][s] / times[1][s] for s in both), 3) if both else None


def _to_loss_ratio(runs: Runs, case: str, arm: str) -> float | None:
    """Median over seeds of the static arm's time to the target loss over this one's."""
    if case not in runs or not {"none", arm} <= set(runs[case]):
        return None
    times = [{run["seed"]: seconds_to_loss(run) for run in runs[case][one]} for one in ("none", arm)]
    both = sorted(set(times[0]) & set(times[1]))
    ratios = [times[0][s] / times[1][s] for s in both]
    if not ratios or not all(map(math.isfinite, ratios)):  # some run has never got there
        return None
    return round(statistics.median(ratios), 3)


def seconds_to_loss(run: dict[str, Any], target: float = TARGET_LOSS) -> float:
    """Seconds until the mean training loss over the newest batch of samples is at the target; nan: never."""
    parts = run["samples_of"] if "samples_of" in run else {}
    counts = [sum(n or 0 for n in step) for step in zip(*parts.values(), strict=True)]
    counts = counts or [run["samples"] // len(run["losses"])] * len(run["losses"])
    newest: deque[tuple[float, int]] = deque()
    for loss, count, end_s in zip(run["losses"], counts, run["ends_s"], strict=True):
        newest.append((loss, count))
        while sum(n for _, n in newest) - newest[0][1] >= BATCH:
            newest.popleft()
        total = sum(n for _, n in newest)
        if total >= BATCH and sum(x * n for x, n in newest) / total <= target:
            return float(end_s)
    return math.nan


def _loss_gap(runs: Runs, case: str, arm: str) -> float | None:
    """Median over seeds of an arm's held-out loss less that of the static one, for the same number of
    samples, nats."""
    if case not in runs or not {"none", arm} <= set(runs[case]):
        return None
    losses = [{run["seed"]: run["held_out"] for run in runs[case][one]} for one in (arm, "none")]
    both = sorted(set(losses[0]) & set(losses[1]))
    return round(statistics.median(losses[0][s] - losses[1][s] for s in both), 4) if both else None


def _gap(runs: Runs, by_step: bool) -> float | None:
    """How much longer the slowest worker computes under `dd`, once it has settled, than the optimum of its
    programme for the costs that the same runs' workers had: the slowest of each step, or by medians over
    steps."""
    if "three speeds" not in runs or not runs["three speeds"]["dd"]:
        return None
    gaps = []
    for run in runs["three speeds"]["dd"]:
        late = slice(int(len(run["step_s"]) * LATE), None)
        took = {name: series[late] for name, series in run["compute_s_of"].items()}
        samples = {name: series[late] for name, series in run["samples_of"].items()}
        if by_step:
            took_s = statistics.median(max(step) for step in zip(*took.values(), strict=True))
        else:
            took_s = max(statistics.median(series) for series in took.values())
        per_sample_s = {
            name: statistics.median(s / n for s, n in zip(took[name], samples[name], strict=True))
            for name in took
        }
        # The costs at the split that was found, passes in them: the optimum for them can only be lower.
        parts = [Part(0.0, per_sample_s[name], BATCH) for name in sorted(per_sample_s)]
        best = max(p.seconds(n) for p, n in zip(parts, balance(parts, BATCH), strict=True))
        gaps.append(took_s / best - 1.0)
    return round(statistics.median(gaps), 4)


def recovery_s(run: dict[str, Any]) -> float:
    """Seconds from the time at which the machine turned slow to the first of ten steps that, as their median,
    take no more than 10/9 of those before; inf: never."""
    since_s = CASES["turns slow"].turns_slow_s
    before = [s for s, end_s in zip(run["step_s"], run["ends_s"], strict=True) if end_s < since_s]
    full_s = statistics.median(before[len(before) // 2 :])
    hit = next((i for i, end_s in enumerate(run["ends_s"]) if end_s > since_s + full_s), len(run["ends_s"]))
    for place in range(hit, len(run["step_s"]) - 10):
        if statistics.median(run["step_s"][place : place + 10]) <= full_s / 0.9:
            return float(run["ends_s"][place] - since_s)
    return math.inf


def _show(runs: Runs) -> None:
    rows = []
    for case, arms in runs.items():
        for arm, found in arms.items():
            if not found:
                continue
            times = [run["took_s"] for run in found]
            base = _ratio(runs, case, "none", arm)
            rows.append([
                case, arm, f"{statistics.median(times):.1f}", f"{min(times):.1f}", f"{max(times):.1f}",
                f"{base:.2f}" if base else "", f"{statistics.median(run['held_out'] for run in found):.4f}",
            ])  # fmt: skip
    with contextlib.suppress(ValueError):
        table(["case", "arm", "s", "from", "to", "static / it", "held-out loss"], rows)


if __name__ == "__main__":
    main()
