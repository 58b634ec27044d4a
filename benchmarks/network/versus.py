"""Ours against FSDP2 and DeepSpeed on the same test hosts, in turns; losses are held to one process'.

Each peer is tried on gloo's own collectives and on our rings, and runs at the better of the two.
"""

from __future__ import annotations

import statistics
import subprocess
from typing import Any

from benchmarks.common import ROOT, table
from benchmarks.network import strategies
from benchmarks.network.arms import Found, Place, Row, child, run_arms, sent_bytes, state_bytes
from benchmarks.network.strategies import FLAGS, QUICK_FLAGS

LOSS_TOLERANCE = 1e-2
OURS = ("paro_IIG", "paro_III", "paro_NGG", "paro_GGG")
PEERS = ("zero3", "zero3_held", "hpz", "fsdp2", "hsdp", "hsdp_deferred", "hsdp_kept")
HEADLINE = ("paro_IIG", "paro_III", "hsdp_deferred", "hsdp_kept", "zero3")
TITLES = {
    "zero3": "ZeRO-3", "zero3_held": "ZeRO-3, thresholds as they come", "hpz": "ZeRO-3 with hpZ",
    "fsdp2": "FSDP2 full shard", "hsdp": "FSDP2 HSDP", "hsdp_deferred": "FSDP2 HSDP, deferred",
    "hsdp_kept": "the same, parameters kept",
}  # fmt: skip


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    subprocess.run([str(ROOT / "scripts/make-peers-venv")], cwd=ROOT, check=True)
    place = Place()
    flags: dict[str, Any] = {**(QUICK_FLAGS if quick else FLAGS), "warmup": 1}
    peers = ("zero3", "hsdp_deferred") if quick else PEERS
    ours = ("paro_IIG", "paro_NII", "paro_GGG") if quick else OURS
    print(f"peers, {place.name}: which collectives suit them", flush=True)
    tried = Found()
    if not quick:
        both = [arm for peer in peers for arm in (peer, f"{peer}_rings")]
        tried = run_arms(place, both, {**flags, "steps": 1}, 400.0)
    best = {peer: _better(tried, peer) for peer in peers}
    print(f"peers, {place.name}: in turns", flush=True)
    arms = [*ours, *best.values()]
    first = [best[name] if name in best else name for name in HEADLINE]
    first = arms if quick else [arm for arm in first if arm in arms]
    rounds, steps = (1, 1) if quick else (4, 3)
    timed = run_arms(place, first, {**flags, "steps": steps}, 120.0 if quick else 500.0, rounds)
    rest = [arm for arm in arms if arm not in first]
    if rest:
        more = run_arms(place, rest, {**flags, "steps": steps}, 400.0)
        timed.rows += more.rows
        timed.failed |= more.failed
    reference = _alone(place, {**flags, "steps": steps})
    rows = [_row(timed, arm, reference) for arm in arms if timed.of(arm)]
    for row in rows:
        row["title"] = next((TITLES[peer] for peer, arm in best.items() if arm == row["arm"]), row["arm"])
    _show(rows)
    samples: dict[str, Any] = {
        "rows": rows, "failed": {**tried.failed, **timed.failed}, "tried": tried.rows, "raw": timed.rows,
        "place": place.name, "inter": place.inter, "intra": place.intra,
    }  # fmt: skip
    figures = _figures(rows, best)
    if quick:
        own = strategies.rows_of(timed, ours, place)
        samples["strategies"] = own
        figures |= strategies.worst(own)
    return {"samples": samples, "figures": figures, "flags": flags}


def _better(tried: Found, peer: str) -> str:
    """The variant of a peer with the shorter step; on our rings where it was not tried."""
    ways = [arm for arm in (peer, f"{peer}_rings") if tried.of(arm)]
    return min(ways, key=tried.median_s) if ways else f"{peer}_rings"


def _alone(place: Place, flags: dict[str, Any]) -> list[float]:
    """Losses of one process that sees the samples of all ranks."""
    words = ["--arm", "single", "--ranks", str(place.hosts * place.ranks)]
    for name, value in flags.items():
        words += [f"--{name}", str(value)]
    row = child("benchmarks.peers.run", words, 120.0, {"RANK": "0", "WORLD_SIZE": "1"})
    losses: list[float] = row["losses"]
    return losses


def _row(found: Found, arm: str, reference: list[float]) -> Row:
    runs = found.of(arm)
    steps = found.step_s(arm)
    pairs = zip(runs[0]["losses"], reference, strict=True)
    gap = max(abs(one - other) / abs(other) for one, other in pairs)
    return {
        "arm": arm,
        "step_s": statistics.median(steps),
        "step_s_range": [min(steps), max(steps)],
        "rounds": len(runs),
        "compute_only_s": statistics.median(run["compute_only_s"] for run in runs),
        "sent_bytes": sent_bytes(runs[0]),
        "state_bytes": state_bytes(runs[0]),
        "loss_gap": gap,
        # A quick step that learns something else is no result.
        "counts": gap <= LOSS_TOLERANCE,
    }


def _figures(rows: list[Row], best: dict[str, str]) -> dict[str, Any]:
    good = {row["arm"]: row for row in rows if row["counts"]}

    def ratio(one: str, other: str, key: str) -> float | None:
        return round(good[one][key] / good[other][key], 3) if {one, other} <= set(good) else None

    zero = best["zero3"] if "zero3" in best else ""
    hsdp = best["hsdp_deferred"] if "hsdp_deferred" in best else ""
    figures = {
        "iig_vs_zero3": ratio(zero, "paro_IIG", "step_s"),
        "iig_vs_hsdp_time": ratio("paro_IIG", hsdp, "step_s"),
        "iig_vs_hsdp_state": ratio("paro_IIG", hsdp, "state_bytes"),
    }
    others = {f"iig_vs_{peer}": ratio(arm, "paro_IIG", "step_s") for peer, arm in best.items() if arm != zero}
    own = {f"iig_vs_{arm[-3:]}": ratio(arm, "paro_IIG", "step_s") for arm in OURS[1:]}
    return figures | {key: value for key, value in (others | own).items() if value is not None}


def _show(rows: list[Row]) -> None:
    table(
        ["", "arm", "step s", "from", "to", "compute s", "sent MB", "held MB", "loss gap", "counts"],
        [
            [
                row["title"], row["arm"], f"{row['step_s']:.3f}", f"{row['step_s_range'][0]:.3f}",
                f"{row['step_s_range'][1]:.3f}", f"{row['compute_only_s']:.3f}",
                f"{row['sent_bytes'] / 1e6:.2f}",
                f"{row['state_bytes'] / 1e6:.2f}", f"{row['loss_gap']:.1e}", "yes" if row["counts"] else "NO",
            ]
            for row in rows
        ],
    )  # fmt: skip
