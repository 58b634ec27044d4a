"""Rings, method against method, over message sizes; and unshaped, against gloo's own all-reduce."""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from benchmarks.common import ROOT, table
from benchmarks.network.arms import QUIET, PartError, Place, Row
from shoestring.base.units import format_bytes

SHAPED = {"4x2": Place(2, 2), "8x4": Place(2, 4)}
FREE = {"4x2": Place(2, 2, None, None), "8x4": Place(2, 4, None, None)}
SIZES = "64k,256k,1m,4m,16m"
LARGE = "64m"
METHODS = "flat,sequential,overlap,backend"
HEADLINE_BYTES = 16 * 2**20
MIB = 2**20


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    samples: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for name, place in ({"4x2": Place(2, 2)} if quick else SHAPED).items():
        print(f"rings, {place.name} at {place.inter}", flush=True)
        rows, auto = _run(place, "16m" if quick else SIZES, METHODS, 3 if quick else 7)
        if not quick:
            large, more = _run(place, LARGE, "flat,sequential,overlap", 3)
            rows, auto = rows + large, auto | more
        samples[f"shaped_{name}"] = {"rows": rows, "auto": auto, "inter": place.inter, "intra": place.intra}
        _show(rows, auto)
        figures[f"ring_vs_flat_{name}"] = _ratio(rows, "flat", "overlap")
        if name == "4x2":
            figures["overlap_vs_sequential"] = _ratio(rows, "sequential", "overlap")
        else:
            figures[f"overlap_vs_sequential_{name}"] = _ratio(rows, "sequential", "overlap")
    for name, place in ({} if quick else FREE).items():
        print(f"rings, {place.name}, unshaped", flush=True)
        rows, auto = _run(place, SIZES, METHODS, 9)
        samples[f"free_{name}"] = {"rows": rows, "auto": auto}
        _show(rows, auto)
        figures[f"ring_vs_gloo_unshaped_{name}"] = _ratio(rows, "backend", "overlap")
    if quick:
        figures["ring_vs_flat_8x4"] = None
    if any(not row["correct"] for part in samples.values() for row in part["rows"]):
        raise PartError("a ring gave a wrong sum", "run `python -m benchmarks.rings` there")
    return {"samples": samples, "figures": figures, "flags": {"headline_bytes": HEADLINE_BYTES}}


def _run(place: Place, sizes: str, methods: str, turns: int) -> tuple[list[Row], dict[str, str]]:
    """Rows of `benchmarks.rings`, and what the rings' own rule takes for each size."""
    words = [sys.executable, "-m", "benchmarks.rings", "--json", "--sizes", sizes, "--methods", methods]
    words += ["--turns", str(turns), "--turn-bytes", str(128 * MIB)]
    with place.lab() as lab:
        result = lab.run(words, 240.0, QUIET, ROOT).check()
    found = json.loads(next(line for line in result.outputs[0].splitlines() if line.startswith("{")))
    auto = dict(zip(sizes.split(","), found["auto"], strict=True))
    return found["rows"], auto


def _ratio(rows: list[Row], slow: str, fast: str) -> float | None:
    """How many times quicker, at the headline's size: the median over turns of the ratio in one turn."""
    here: dict[str, list[float]] = {
        row["method"]: row["samples_s"] for row in rows if row["size_bytes"] == HEADLINE_BYTES
    }
    if slow not in here or fast not in here:
        return None
    return round(statistics.median(a / b for a, b in zip(here[slow], here[fast], strict=True)), 3)


def _show(rows: list[Row], auto: dict[str, str]) -> None:
    flat = {row["size_bytes"]: row["median_s"] for row in rows if row["method"] == "flat"}
    table(
        ["size", "method", "ms", "over flat"],
        [
            [
                format_bytes(row["size_bytes"]), row["method"], f"{row['median_s'] * 1e3:.1f}",
                f"{flat[row['size_bytes']] / row['median_s']:.2f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    print(f"the rings' own rule takes {auto}", flush=True)
