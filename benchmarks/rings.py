"""One collective by several methods, taking turns: what each rank of a lab (or of torchrun) runs.

`python -m benchmarks.rings --sizes 64k,4m --methods flat,overlap` with RANK, WORLD_SIZE, LOCAL_WORLD_SIZE,
MASTER_ADDR and MASTER_PORT set; the ranks of a host are a group. Rank 0 prints a table, or with --json one
line. Every sample is the time of the slowest rank, from a common start. All methods do the same work on the
same numbers, and each one's result is compared with the known sum once per size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from time import perf_counter, process_time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.common import table
from shoestring.base.units import format_bytes, parse_bytes
from shoestring.cluster.strategies import equal_groups
from shoestring.parallel import rings

OPERATIONS = ("all_reduce", "reduce_scatter", "all_gather")
METHODS = ("flat", "sequential", "overlap", "backend")


@dataclass(frozen=True)
class Row:
    """One method at one size.

    Attributes:
        samples_s: seconds of the slowest rank, each turn.
        cpu_s: median processor seconds of rank 0's process, all its threads.
        correct: the result was the known sum.
    """

    operation: str
    method: str
    size_bytes: int
    median_s: float
    cpu_s: float
    samples_s: tuple[float, ...]
    correct: bool


def measure(
    ring: rings.Rings, operation: str, methods: Sequence[str], size_bytes: int, dtype: torch.dtype, turns: int
) -> list[Row]:
    """Let the methods take turns on one size; every rank must call it alike.

    Args:
        turns: measured turns, after one that is not counted.
    """
    items = size_bytes // dtype.itemsize
    world = ring.layout.size
    # Small whole numbers: every order of sums is exact, in bf16 too.
    fresh = [torch.arange(items).remainder(3).to(dtype) + rank % 2 for rank in range(2)]
    expected = fresh[0] * ((world + 1) // 2) + fresh[1] * (world // 2)
    tensor = torch.empty(items, dtype=dtype)
    times: dict[str, list[float]] = {method: [] for method in methods}
    cpu: dict[str, list[float]] = {method: [] for method in methods}
    correct = dict.fromkeys(methods, True)
    for turn in range(turns + 1):
        for method in methods:
            tensor.copy_(expected if operation == "all_gather" else fresh[ring.rank % 2])
            dist.barrier()
            began, began_cpu = perf_counter(), process_time()
            _run(ring, operation, method, tensor)
            took_s, took_cpu_s = perf_counter() - began, process_time() - began_cpu
            if turn == 0:
                correct[method] = _right(ring, operation, tensor, expected)
                continue
            times[method].append(_slowest(took_s))
            cpu[method].append(took_cpu_s)
    return [
        Row(
            operation,
            method,
            size_bytes,
            statistics.median(times[method]),
            statistics.median(cpu[method]),
            tuple(times[method]),
            correct[method],
        )
        for method in methods
    ]


def main() -> None:
    """Measure as one rank."""
    options = _arguments()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", timeout=timedelta(seconds=options.timeout_s))
    layout = equal_groups(world, options.group_size or int(os.environ["LOCAL_WORLD_SIZE"]))
    began = perf_counter()
    ring = rings.Rings(
        layout, timeout_s=options.timeout_s, chunk_bytes=options.chunk_bytes, in_flight=options.in_flight
    )
    form_s = perf_counter() - began
    dtype = getattr(torch, options.dtype)
    rows = []
    for size in options.sizes:
        size_bytes = parse_bytes(size)
        turns = max(3, min(options.turns, options.turn_bytes // size_bytes))
        rows += measure(ring, options.operation, options.methods, size_bytes, dtype, turns)
    auto = [ring.all_reduce(torch.zeros(parse_bytes(size) // 4)) for size in options.sizes]
    for pending in auto:
        pending.wait()
    ring.close()
    dist.destroy_process_group()
    if rank == 0:
        _print(options, world, layout.group_size, form_s, rows, [pending.choice.method for pending in auto])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ring collectives, method against method")
    parser.add_argument("--sizes", type=_words, default=["64k", "1m", "16m"], help="such as 64k,1m,16m")
    parser.add_argument("--methods", type=_words, default=list(METHODS), help=",".join(METHODS))
    parser.add_argument("--operation", choices=OPERATIONS, default="all_reduce")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--turns", type=int, default=9, help="at most, and at least 3")
    parser.add_argument("--turn-bytes", type=parse_bytes, default=64 * 2**20, help="bounds turns times size")
    parser.add_argument("--group-size", type=int, default=0, help="0: LOCAL_WORLD_SIZE")
    parser.add_argument("--chunk-bytes", type=parse_bytes, default=0, help="0: by size")
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--timeout-s", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return text.split(",")


def _run(ring: rings.Rings, operation: str, method: Any, tensor: torch.Tensor) -> None:
    if operation == "all_reduce":
        ring.all_reduce(tensor, method=method).wait()
    elif operation == "all_gather":
        ring.all_gather(tensor, ring.block(tensor), method=method).wait()
    else:
        ring.reduce_scatter(ring.block(tensor), tensor, method=method).wait()


def _right(ring: rings.Rings, operation: str, tensor: torch.Tensor, expected: torch.Tensor) -> bool:
    if operation == "reduce_scatter":
        return torch.equal(ring.block(tensor), ring.block(expected))
    return torch.equal(tensor, expected)


def _slowest(took_s: float) -> float:
    time_s = torch.tensor(took_s, dtype=torch.float64)
    dist.all_reduce(time_s, dist.ReduceOp.MAX)
    return float(time_s)


def _print(
    options: argparse.Namespace, world: int, group_size: int, form_s: float, rows: list[Row], auto: list[str]
) -> None:
    if options.json:
        head = {
            "ranks": world,
            "group_size": group_size,
            "dtype": options.dtype,
            "form_s": form_s,
            "auto": auto,
        }
        print(json.dumps(head | {"rows": [asdict(row) for row in rows]}))
        return
    flat_s = {row.size_bytes: row.median_s for row in rows if row.method == "flat"}
    table(
        ["operation", "size", "method", "ms", "over flat", "cpu ms", "correct"],
        [
            [
                row.operation,
                format_bytes(row.size_bytes),
                row.method,
                f"{row.median_s * 1e3:.1f}",
                f"{flat_s[row.size_bytes] / row.median_s:.2f}" if row.size_bytes in flat_s else "",
                f"{row.cpu_s * 1e3:.1f}",
                str(row.correct),
            ]
            for row in rows
        ],
    )
    print(f"formed in {form_s * 1e3:.0f} ms; auto takes {dict(zip(options.sizes, auto, strict=True))}")


if __name__ == "__main__":
    main()
