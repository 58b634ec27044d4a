"""Losses of 50 steps under every strategy against one process, and checkpoints loaded under each other.

fp32 on loopback: this is about numbers, not time. Four ranks in two groups; mixture of experts, tied weights,
frozen weights. `python -m benchmarks.network.parity` measures in forked ranks and prints a line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import table
from benchmarks.network.arms import PartError, child
from shoestring.cluster.strategies import BUILT
from shoestring.parallel import paro, tensorfiles
from shoestring.parallel.paro.over_rings import RingExchange
from tests.parallel.paro import toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, mean_over_ranks, rings

STEPS = 50
RANKS = 4
BEFORE, AFTER = 5, 5
"""Steps before a checkpoint, and after it under another strategy."""
FOUND = "found.json"


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    print("parity", flush=True)
    rows = child("benchmarks.network.parity", ["quick" if quick else "full"], 400.0)["rows"]
    kinds = sorted({row["kind"] for row in rows})
    table(
        ["", *kinds],
        [
            [name, *(f"{max(r['error'] for r in rows if (r['kind'], r['strategy']) == (kind, name)):.1e}"
                     for kind in kinds)]
            for name in BUILT
        ],
    )  # fmt: skip
    worst = max(row["error"] for row in rows)
    figures = {
        "parity_max": float(f"{worst:.3g}"),
        "parity_training_max": _worst(rows, "training"),
        "parity_crossed_max": _worst(rows, "crossed"),
    }
    return {"samples": {"rows": rows}, "figures": figures, "flags": {"steps": STEPS, "dtype": "fp32"}}


def _worst(rows: list[dict[str, Any]], start: str) -> float:
    return float(f"{max(row['error'] for row in rows if row['kind'].startswith(start)):.3g}")


def main(quick: bool) -> None:
    """Measure in forked ranks; the parent prints."""
    torch.set_num_threads(1)
    builds = (toys.moe, toys.tied, toys.frozen)
    steps = 10 if quick else STEPS
    wanted = {build.__name__: toys.alone(build, RANKS, steps)[0] for build in builds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def body(rank: int) -> None:
            torch.set_num_threads(1)
            rows: list[dict[str, Any]] = []
            with rings(TWO_BY_TWO, rank) as exchange:
                for build in builds:
                    rows += _trained(build, exchange, rank, wanted[build.__name__])
                    rows += _crossed(build, exchange, rank, wanted[build.__name__], folder)
            if rank == 0:
                (folder / FOUND).write_text(json.dumps({"rows": rows}))

        in_ranks(RANKS, folder, body)
        print((folder / FOUND).read_text(), flush=True)


def _trained(
    build: toys.Build, exchange: RingExchange, rank: int, wanted: list[float]
) -> list[dict[str, Any]]:
    rows = []
    for strategy in BUILT:
        model, optimizer = toys.sharded(build, strategy, exchange)
        found = mean_over_ranks(toys.train(model, optimizer, rank, range(len(wanted))))
        rows.append(_row(f"training {build.__name__}", strategy, found, wanted))
    return rows


def _crossed(
    build: toys.Build, exchange: RingExchange, rank: int, wanted: list[float], folder: Path
) -> list[dict[str, Any]]:
    """A checkpoint of each strategy goes on under each; a row for each pair."""
    after = range(BEFORE, BEFORE + AFTER)
    rows = []
    for writer in BUILT:
        place = folder / f"{build.__name__}-{writer}"
        if rank == 0:
            place.mkdir()
        model, optimizer = toys.sharded(build, writer, exchange)
        toys.train(model, optimizer, rank, range(BEFORE))
        optimizer.engine.settle_parameters()
        dist.barrier()
        tensorfiles.write(paro.own_tensors(optimizer), place, rank)
        dist.barrier()
        for reader in BUILT:
            model, optimizer = toys.sharded(build, reader, exchange)
            tensorfiles.read(paro.state_tensors(optimizer), place)
            optimizer.engine.publish()
            found = mean_over_ranks(toys.train(model, optimizer, rank, after))
            expected = wanted[BEFORE : BEFORE + AFTER]
            rows.append(_row(f"crossed {build.__name__}", reader, found, expected, writer))
    return rows


def _row(
    kind: str, strategy: str, found: list[float], wanted: list[float], writer: str = ""
) -> dict[str, Any]:
    error = toys.worst(found, wanted)
    # One that learns nothing proves nothing.
    if not writer and not found[-1] < found[0]:
        raise PartError(f"{kind}, {strategy}: the loss does not fall", "look at the model")
    return {"kind": kind, "strategy": strategy, "writer": writer, "error": error, "losses": found}


if __name__ == "__main__":
    main(sys.argv[1] == "quick")
