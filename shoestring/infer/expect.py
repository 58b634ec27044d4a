"""What a job is expected to take, from a trial of a few rows: pure functions (source: ours; the allotment is
`control.pools`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from shoestring.control.pools import Kind, Pool, PoolsConfig, allot, bound, pace, slowest_of
from shoestring.infer.births import LOAD, WRITE
from shoestring.infer.config import LimitsConfig, ShardsConfig, StageConfig
from shoestring.infer.rehearsal import Rehearsal

ALONE, PER_WORKER = 4, 12
"""Shards of each worker at least, where it is alone and where it is not: fewer, and the last one of the
slowest decides when the job ends."""
MOST_SHARDS = 5_000
"""In all: each is a file of the output, and a transaction."""


@dataclass(frozen=True)
class Part:
    """One part of the pipeline.

    Attributes:
        row_s: seconds of one process for a row of the source; `cpu_share` of them use a core.
        items_per_row: that it works on, for a row of the source.
        share: of all parts' seconds.
        processes: of each worker that are expected; `fixed`: as the user said.
        busy: share of their time, at the expected pace.
        setup_s: of a process.
        batch: items to begin with; 0: it has none.
    """

    name: str
    kind: Kind
    row_s: float
    cpu_share: float
    items_per_row: float
    share: float
    processes: int
    fixed: bool
    busy: float
    setup_s: float = 0.0
    batch: int = 0


@dataclass(frozen=True)
class Expected:
    """What is expected of a job.

    Attributes:
        parts: in the order of the flow.
        workers: that work on it, with `cores` each.
        rows_per_s: of all of them.
        slowest: the part that bounds it, or `cores`.
        rows: of the job; `total_s` for all of them, the setting up of processes included.
        output_bytes: of all files.
    """

    parts: tuple[Part, ...]
    workers: int
    cores: float
    rows_per_s: float
    slowest: str
    rows: int
    total_s: float
    output_bytes: float

    @property
    def reason(self) -> str:
        """In words."""
        counts = ", ".join(f"{part.processes} {part.name}" for part in self.parts)
        if self.slowest == "cores":
            why = f"{self.cores:g} cores are all in use"
        elif self.slowest:
            why = f"{self.slowest} is the slowest"
        else:
            why = "nothing takes time"
        return f"{counts} processes a worker: {why}"


def expect(
    rehearsal: Rehearsal,
    stages: Mapping[str, StageConfig],
    pools: PoolsConfig,
    rows: int,
    cores: float,
    workers: int,
    most: Mapping[str, int] | None = None,
) -> Expected:
    """The allotment that the trial suggests, and what follows from it.

    Args:
        stages: name -> its settings, in the order of the flow.
        rows: of the whole job.
        cores: of each worker.
        most: stage -> processes that a worker's GPUs have room for (0: no bound); None: not known.
    """
    known = _pools(rehearsal, stages, pools, most or {})
    counts = allot(known, cores, bound(len(known), cores, pools.processes))
    with_counts = [replace(pool, processes=count) for pool, count in zip(known, counts, strict=True)]
    rate = pace(with_counts, cores)
    spent_s = sum(pool.row_s for pool in known) or 1.0
    parts = tuple(
        Part(
            name=pool.name,
            kind=pool.kind,
            row_s=pool.row_s,
            cpu_share=pool.cpu_share,
            items_per_row=rehearsal.stages[pool.name].items_per_row if pool.name in rehearsal.stages else 1.0,
            share=pool.row_s / spent_s,
            processes=pool.processes,
            fixed=pool.fixed,
            busy=min(1.0, rate * pool.row_s / pool.processes) if math.isfinite(rate) else 0.0,
            setup_s=rehearsal.stages[pool.name].setup_s if pool.name in rehearsal.stages else 0.0,
            batch=rehearsal.stages[pool.name].batch if pool.name in rehearsal.stages else 0,
        )
        for pool in with_counts
    )
    setup_s = max((part.setup_s for part in parts), default=0.0)
    working_s = rows / (rate * workers) if rate > 0 and math.isfinite(rate) else 0.0
    return Expected(
        parts=parts,
        workers=workers,
        cores=cores,
        rows_per_s=rate * workers if math.isfinite(rate) else 0.0,
        slowest=slowest_of(with_counts, cores),
        rows=rows,
        total_s=setup_s + working_s,
        output_bytes=rehearsal.output_row_bytes * rows,
    )


def shard_rows(
    shards: ShardsConfig, limits: LimitsConfig, expected: Expected, row_bytes: float, memory_bytes: int
) -> tuple[int, str]:
    """Rows of a shard, and why so many.

    Args:
        row_bytes: of shared memory for a row in flight.
        memory_bytes: of the machine, a worker's part.
    """
    if shards.rows:
        return shards.rows, "as set"
    rows, why = shards.target_s * expected.rows_per_s / expected.workers, f"{shards.target_s:g} s of work"
    if not rows:
        rows, why = float(expected.rows), "no part's cost is known"
    each = PER_WORKER if expected.workers > 1 else ALONE
    per_worker = expected.rows / (each * expected.workers)
    if rows > per_worker:
        rows, why = per_worker, f"{each} shards for each worker"
    if rows < expected.rows / MOST_SHARDS:
        rows, why = expected.rows / MOST_SHARDS, f"{MOST_SHARDS} files in all"
    room_bytes = (limits.segment_bytes or memory_bytes / 4) / (shards.ahead + 1)
    if rows * row_bytes > room_bytes:
        rows, why = room_bytes / row_bytes, f"{row_bytes / 1e6:.3g} MB of memory for a row in flight"
    return max(1, math.ceil(rows)), why


def _pools(
    rehearsal: Rehearsal, stages: Mapping[str, StageConfig], pools: PoolsConfig, most: Mapping[str, int]
) -> list[Pool]:
    """The parts as the allotment wants them, one process each unless the user said how many; what the trial's
    rows did not reach costs nothing that is known."""
    found = [_pool(LOAD, "load", pools.load, rehearsal.load_s, rehearsal.load_cpu_share)]
    for name, config in stages.items():
        cost = rehearsal.stages[name] if name in rehearsal.stages else None
        row_s, share = (cost.row_s, cost.cpu_share) if cost else (0.0, 1.0)
        one = _pool(name, "stage", config.processes, row_s, share)
        found.append(replace(one, most=most[name]) if name in most else one)
    found.append(_pool(WRITE, "write", pools.write, rehearsal.write_s, rehearsal.write_cpu_share))
    return found


def _pool(name: str, kind: Kind, processes: int, row_s: float, cpu_share: float) -> Pool:
    known_s = row_s if math.isfinite(row_s) else 0.0
    return Pool(name, kind, processes or 1, processes > 0, 0.0, cpu_share, 0, known_s)
