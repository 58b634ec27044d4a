"""Every strategy that the engine has: step time, bytes on the wire and bytes held against the formulas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import table
from benchmarks.network.arms import Found, Place, Row, job_of, run_arms, sent_bytes, state_bytes
from shoestring.cluster.costs import CPU_OVERLAP, held, step_cost
from shoestring.cluster.strategies import BUILT, equal_groups, parse_strategy
from shoestring.cluster.wires import wires_of

FRAME_BYTES, HEADER_BYTES = 9014, 66
"""Of a full frame at the lab's MTU: what the card counts, and how much of it is headers."""
HEADERS = HEADER_BYTES / FRAME_BYTES
FLAGS = {"model": "llama_8m", "accumulation": 4, "length": 32}
QUICK_FLAGS = {"model": "llama_5m", "accumulation": 2, "length": 32}


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    places = [Place()] if quick else [Place(), Place(2, 4), Place(4, 2)]
    flags = {**(QUICK_FLAGS if quick else FLAGS), "warmup": 1, "steps": 1 if quick else 3}
    names = ("NII", "IIG", "GGG") if quick else BUILT
    arms = [f"paro_{name}" for name in names]
    samples: dict[str, Any] = {}
    every: list[Row] = []
    for place in places:
        print(f"strategies, {place.name}", flush=True)
        found = run_arms(place, arms, flags, 120.0 if quick else 420.0)
        rows = rows_of(found, arms, place)
        samples[place.name] = {"rows": rows, "failed": found.failed, "raw": found.rows, "inter": place.inter}
        every += rows
        _show(rows)
    return {"samples": samples, "figures": worst(every), "flags": flags}


def rows_of(found: Found, arms: Sequence[str], place: Place) -> list[Row]:
    """Measured and by the formulas, for each of these arms that ran."""
    return [_row(found, arm, place) for arm in arms if found.of(arm)]


def worst(rows: Sequence[Row]) -> dict[str, Any]:
    """The largest errors; None where nothing was measured."""
    return {
        f"{what}_error_max": round(max(abs(row[f"{what}_error"]) for row in rows), 4) if rows else None
        for what in ("wire", "state")
    }


def _row(found: Found, arm: str, place: Place) -> Row:
    raw = found.of(arm)[0]
    strategy = parse_strategy(arm.removeprefix("paro_"))
    layout = equal_groups(raw["ranks"], place.ranks)
    cluster, job = place.cluster(), job_of(raw)
    wires = wires_of(cluster, layout)
    cost = step_cost(job, strategy, wires, cluster, CPU_OVERLAP)
    memory = held(job, strategy, wires)
    formula_bytes = memory.parameters_bytes + memory.gradients_bytes + memory.states_bytes
    steps = found.step_s(arm)
    return {
        "strategy": strategy.name,
        "step_s": found.median_s(arm),
        "step_s_range": [min(steps), max(steps)],
        "compute_only_s": raw["compute_only_s"],
        "sent_bytes": sent_bytes(raw),
        "sent_formula_bytes": cost.card_bytes,
        "wire_error": sent_bytes(raw) / cost.card_bytes - 1,
        "wire_error_without_headers": sent_bytes(raw) * (1 - HEADERS) / cost.card_bytes - 1,
        "rings": cost.rings,
        "state_bytes": state_bytes(raw),
        "state_formula_bytes": formula_bytes,
        "state_error": state_bytes(raw) / formula_bytes - 1,
    }


def _show(rows: list[Row]) -> None:
    table(
        ["", "step s", "from", "to", "compute s", "sent MB", "formula", "error", "held MB", "error"],
        [
            [
                row["strategy"], f"{row['step_s']:.3f}", f"{row['step_s_range'][0]:.3f}",
                f"{row['step_s_range'][1]:.3f}", f"{row['compute_only_s']:.3f}",
                f"{row['sent_bytes'] / 1e6:.2f}",
                f"{row['sent_formula_bytes'] / 1e6:.2f}", f"{row['wire_error']:+.2%}",
                f"{row['state_bytes'] / 1e6:.2f}", f"{row['state_error']:+.2%}",
            ]
            for row in rows
        ],
    )  # fmt: skip
