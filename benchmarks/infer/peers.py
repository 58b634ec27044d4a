"""Parts `uniform`, `skewed`, `skew0` to `skew4`: ours against Ray Data and multiprocessing on the same rows.

Each peer is tried with several settings first and runs at the best of them; ours runs as it comes.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import RESULTS, table
from benchmarks.infer import data
from benchmarks.infer.arms import RUNNERS, Job, folder, peers_ready, quotas
from benchmarks.infer.check import Same
from benchmarks.infer.samples import Arm, Row, median, ratio, rounds, spread
from benchmarks.network.arms import PartError

FILES = 24
SEED = 5
QUOTAS = (0.55, 0.55, 0.14)
"""Cores of the processes that compute, where one is slow: a quarter of the others."""
RAY_TRIES: tuple[dict[str, Any], ...] = (
    {"batch": 64, "blocks": 96},
    {"batch": 64, "blocks": 24, "v2": True, "repartition": 96},
    {"batch": 64, "blocks": 24},
    {"batch": 16, "blocks": 200, "in_flight": 1},
    {"batch": 64, "blocks": 96, "in_flight": 1},
    {"batch": 64, "blocks": 96, "cpus": 2, "actor_cpus": 0.5},
)
POOL_TRIES: tuple[dict[str, Any], ...] = ({"chunk": 0}, {"chunk": 64}, {"chunk": 16})
TRIES = {"ray": RAY_TRIES, "pool": POOL_TRIES}
QUICK_TRIES = 3
"""Of a peer's settings in a quick run, those first that a full run has found best: one of Ray takes 10 s."""
ROWS, QUICK_ROWS = 16_000, 8_000
TIMEOUT_S = 170.0
SKEWED = 3.0


def measure(part: str, quick: bool, count: int, first: int, known: dict[str, Any] | None) -> dict[str, Any]:
    """Samples of one case: `uniform`, `skewed` (skew 3 and one slow process), `skew0` .. `skew4`.

    Args:
        known: what an earlier call of this part found: its settings are taken again.
    """
    peers_ready()
    named = {"uniform": 0.0, "skewed": SKEWED}
    skew = named[part] if part in named else float(part.removeprefix("skew"))
    rows = QUICK_ROWS if quick else ROWS
    if part == "skewed":
        rows = rows * 2 // 3
    cost = data.costs(rows, FILES, skew, SEED)
    with ExitStack() as stack:
        place = stack.enter_context(folder())
        data.write_costs(place / "in", cost, FILES)
        places = stack.enter_context(quotas(QUOTAS)) if part == "skewed" else ""
        processes = len(QUOTAS) if places else 0
        job = Job(place / "in", rows, "Compute", 64, Same(rows, "value"), processes, places)
        print(f"{part}: {rows} rows, skew {skew:g}", flush=True)
        tried = known["tried"] if known else _try(job, chosen(part, recorded() if quick else None))
        arms: dict[str, Arm] = {"ours": partial(_run, "ours", job, {})}
        if places:
            arms["ours, three workers"] = partial(
                _run, "ours", replace(job, processes=1), {"fleet": {"members": {"workers": len(QUOTAS)}}}
            )
        arms |= {name: partial(_run, name, job, found["best"]) for name, found in tried.items()}
        runs, failed = rounds(arms, count, first, part)
    _show(part, runs)
    if quick:
        print(f"{part}: half the rows of a full run: what does not grow with them weighs twice as much")
    return {
        "rows": rows, "files": FILES, "skew": skew, "quotas": QUOTAS if places else (), "tried": tried,
        "runs": runs, "failed": failed,
    }  # fmt: skip


def figures(name: str, runs: list[Row]) -> dict[str, Any]:
    """Ratios of times at work: above 1, ours is faster; `vs_best`: to the quickest peer. And the whole
    command, start-up and all."""
    found: dict[str, Any] = {}
    for peer, short in (("ray", "ray"), ("pool", "mp")):
        found[f"vs_{short}_{name}"] = ratio(runs, peer, "ours")
        found[f"vs_{short}_{name}_whole"] = ratio(runs, peer, "ours", "took_s")
    to_peers = [found[f"vs_{short}_{name}"] for short in ("ray", "mp")]
    if None not in to_peers:  # or the best may be who is not there
        found[f"vs_best_{name}"] = min(to_peers)
    for arm, short in (("ours", "ours"), ("ray", "ray"), ("pool", "mp")):
        for key in ("start_s", "peak_mb"):
            value = median(runs, arm, key)
            found[f"{short}_{key}_{name}"] = None if value is None else round(value, 2)
    if name == "skewed":
        found["vs_ray_skewed_three_workers"] = ratio(runs, "ray", "ours, three workers")
    return {key: value for key, value in found.items() if value is not None}


def recorded() -> dict[str, Any]:
    """Samples of the last full run; empty: there is none."""
    path = RESULTS / "infer.json"
    samples: dict[str, Any] = json.loads(path.read_text())["samples"] if path.exists() else {}
    return samples


def chosen(part: str, full: dict[str, Any] | None) -> dict[str, list[dict[str, Any]]]:
    """Which settings of each peer are tried.

    Args:
        full: samples of a full run: QUICK_TRIES settings, those first that were the best in it (of this part,
            then of others); None: all settings.
    """
    if full is None:
        return {peer: list(tries) for peer, tries in TRIES.items()}
    parts = sorted((name for name in full if "tried" in full[name]), key=lambda name: (name != part, name))
    found = {}
    for peer, tries in TRIES.items():
        best = [full[name]["tried"][peer]["best"] for name in parts if peer in full[name]["tried"]]
        usual = sorted(tries, key=lambda how: best.index(how) if how in best else len(best))
        found[peer] = usual[:QUICK_TRIES]
    return found


def _try(job: Job, settings: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Each peer's settings, once each; a setting that fails is told.

    Raises:
        PartError: all of a peer's do.
    """
    found: dict[str, Any] = {}
    for peer, tries in settings.items():
        times: list[tuple[float, dict[str, Any]]] = []
        runs, failed = rounds({str(how): partial(_run, peer, job, how) for how in tries}, 1, 0, peer)
        for how in tries:
            if (time_s := median(runs, str(how))) is not None:
                times.append((time_s, how))
        if not times:
            raise PartError(f"{peer} fails in every setting: {failed}", "see above")
        found[peer] = {"best": min(times, key=lambda one: one[0])[1], "times_s": times, "failed": failed}
    return found


def _run(peer: str, job: Job, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    found = RUNNERS[peer](job, TIMEOUT_S, how)
    processes = len({call.pid for call in found.calls})
    return found, {"rows_per_s": round(job.rows / found.work_s, 1), "processes": processes}


def _show(part: str, runs: list[Row]) -> None:
    arms = list(dict.fromkeys(row["arm"] for row in runs))
    table(
        [part, "s at work (from, to)", "rows/s", "start s", "MB"],
        [
            [arm, str(spread(runs, arm)), f"{median(runs, arm, 'rows_per_s'):.0f}",
             f"{median(runs, arm, 'start_s'):.2f}", f"{median(runs, arm, 'peak_mb'):.0f}"]
            for arm in arms
        ],
    )  # fmt: skip
