"""How many processes each part of a pipeline should have: pure functions (source: AntBatchInfer, elastic
controller; the allotment by measured service times is ours).

Part i with n_i processes, each of which works c_i seconds for a source row and uses a core for a share u_i of
them, lets through

    rate(n) = min( min_i n_i / c_i,  cores / sum_i u_i c_i )    rows/s.

The first term is the slowest part; the second bounds all work that computes by the cores. Work that waits
(for a source that gives so much a second, a disk, a GPU) is only in the first, so it may have more processes
than there are cores. Measured costs are noisy, and where cores are short they hold waiting for a core too. So
a change is made only where what a cost says is borne out by what processes do: the part that is to grow has
none that idles, those that are to shrink have some that do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from shoestring.base.config import Config

Kind = Literal["load", "stage", "write"]

WORKS = 0.8
"""A part whose processes are busy for less of their time is not what holds the others up."""
IDLES = 0.4
"""A part that would be busy for less than this with a process less has one too many."""
PATIENCE = 4
"""Times `settle_s`, before a process that idles is taken away: it costs memory only."""


class PoolsConfig(Config):
    """How processes are moved.

    Attributes:
        processes: of one worker in all, though one for each part at least; 0: twice as many as it has
            cores and one for each part (those that compute are bounded by the cores anyway).
        interval_s: between looks.
        settle_s: after a change nothing is changed for that long.
        min_gain: a change must promise that much more throughput.
        load, write: processes that read and write; 0: decided.
    """

    processes: int = Field(default=0, ge=0)
    interval_s: float = Field(default=1.0, gt=0.0)
    settle_s: float = Field(default=3.0, ge=0.0)
    min_gain: float = Field(default=0.1, ge=0.0)
    load: int = Field(default=0, ge=0)
    write: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Pool:
    """One part of a worker's pipeline as measured since the last look.

    Attributes:
        name: `load`, `write`, or the stage's.
        processes: that it has now.
        fixed: whether the user said how many.
        busy: share of its processes' time in which they worked, in [0, 1].
        cpu_share: share of that work that used a core, in [0, 1] (the rest waits for disks, networks, GPUs).
        waiting: items queued before it.
        row_s: seconds of one process's work for one source row; nan: not known yet.
        most: processes that it may have (so many fit a GPU, say); 0: no bound.
    """

    name: str
    kind: Kind
    processes: int
    fixed: bool
    busy: float
    cpu_share: float
    waiting: int
    row_s: float
    most: int = 0


@dataclass(frozen=True)
class PoolState:
    """All pools of a worker in the order of the flow, cores it may use, seconds since the last change."""

    pools: tuple[Pool, ...]
    cores: float
    since_change_s: float


@dataclass(frozen=True)
class Resize:
    """A pool shall have so many processes."""

    pool: str
    processes: int


def bound(parts: int, cores: float, processes: int) -> int:
    """Processes of one worker in all; `processes` as in `PoolsConfig`."""
    return max(parts, processes or math.ceil(2 * cores) + parts)


def pace(pools: Sequence[Pool], cores: float) -> float:
    """Source rows per second that these pools let through; parts of unknown cost count as free.

    Returns:
        inf where no cost is known.
    """
    slowest = min((pool.processes / pool.row_s for pool in pools if pool.row_s > 0), default=math.inf)
    return min(slowest, _core_bound(pools, cores))


def slowest_of(pools: Sequence[Pool], cores: float) -> str:
    """What bounds the pace: a pool's name, `cores`, or nothing where no cost is known."""
    known = [pool for pool in pools if pool.row_s > 0]
    if not known:
        return ""
    slowest = min(known, key=lambda pool: pool.processes / pool.row_s)
    return "cores" if _core_bound(pools, cores) < slowest.processes / slowest.row_s else slowest.name


def allot(pools: Sequence[Pool], cores: float, processes: int) -> tuple[int, ...]:
    """The fewest processes of each pool that give the highest pace with `processes` in all.

    Each process goes to the slowest part until that brings nothing more, which is optimal since the pace is
    the least of terms that each grow with their own part alone. Parts that are fixed, or of unknown cost,
    stay.
    """
    kept = [pool.fixed or not pool.row_s > 0 for pool in pools]
    counts = [pool.processes if keep else 1 for pool, keep in zip(pools, kept, strict=True)]
    ceiling = _core_bound(pools, cores)
    free = processes - sum(counts)
    known = [place for place, pool in enumerate(pools) if pool.row_s > 0]
    while free > 0 and known:
        place = min(known, key=lambda i: counts[i] / pools[i].row_s)
        full = kept[place] or (pools[place].most and counts[place] >= pools[place].most)
        if full or counts[place] / pools[place].row_s >= ceiling:
            break
        counts[place] += 1
        free -= 1
    reached = pace(_with(pools, counts), cores)
    return tuple(
        count if keep else max(1, min(count, math.ceil(reached * pool.row_s - 1e-9)))
        for pool, count, keep in zip(pools, counts, kept, strict=True)
    )


def decide(state: PoolState, options: PoolsConfig) -> tuple[tuple[Resize, ...], str]:
    """Which pools to resize now, and why; without any: why not."""
    pools = state.pools
    processes = bound(len(pools), state.cores, options.processes)
    if not any(pool.row_s > 0 for pool in pools):
        return (), "no part's cost is known yet"
    counts = allot(pools, state.cores, processes)
    if sum(pool.processes for pool in pools) > processes and sum(counts) <= processes:
        return _resizes(pools, counts), f"{processes} processes are allowed in all"
    if state.since_change_s < options.settle_s:
        return (), f"the last change was {state.since_change_s:.1f} s ago"
    before, slowest = pace(pools, state.cores), slowest_of(pools, state.cores)
    if slowest == "cores":
        return _idle(state, options, "all cores are in use")
    holder = next(pool for pool in pools if pool.name == slowest)
    if holder.fixed:
        return _idle(state, options, f"{slowest} is the slowest, and its processes are fixed")
    if holder.busy < WORKS:
        return _idle(state, options, f"{slowest} is the slowest, yet busy only {holder.busy:.0%} of the time")
    counts = _moved(pools, counts, state.cores, processes)
    gain = pace(_with(pools, counts), state.cores) / before - 1
    if gain < max(options.min_gain, 1e-9):
        return _idle(
            state, options, f"{slowest} is the slowest, and no change promises {options.min_gain:.0%}"
        )
    return _resizes(pools, counts), f"{_evidence(pools, holder)}: {gain:+.0%} rows/s is expected"


def _core_bound(pools: Sequence[Pool], cores: float) -> float:
    """Rows per second at which all cores compute."""
    work_s = sum(pool.row_s * pool.cpu_share for pool in pools if pool.row_s > 0)
    return cores / work_s if work_s > 0 else math.inf


def _moved(pools: Sequence[Pool], counts: Sequence[int], cores: float, processes: int) -> tuple[int, ...]:
    """Counts to go to: nobody shrinks but for others, and only by processes that idle and will do so at the
    new pace too. What cannot be had like that is missing from the growth."""
    gain = max(1.0, pace(_with(pools, counts), cores) / pace(pools, cores))
    least = [
        max(count, pool.processes if pool.fixed else math.ceil(pool.busy * pool.processes * gain - 1e-9))
        for pool, count in zip(pools, counts, strict=True)
    ]
    aims = [max(count, pool.processes) for pool, count in zip(pools, counts, strict=True)]
    for _ in range(sum(aims) - processes):
        place = max(range(len(pools)), key=lambda i: aims[i] - least[i])
        if aims[place] <= least[place]:
            place = max(range(len(pools)), key=lambda i: aims[i] - pools[i].processes)
        aims[place] -= 1
    return tuple(aims)


def _idle(state: PoolState, options: PoolsConfig, otherwise: str) -> tuple[tuple[Resize, ...], str]:
    """Nothing is to grow; after a while a process that has nothing to do goes, with the memory it holds."""
    if state.since_change_s >= PATIENCE * options.settle_s:
        for pool in state.pools:
            least = pool.processes - 1
            if pool.fixed or least < 1 or not pool.row_s > 0:
                continue
            if (busy := pool.busy * pool.processes / least) < IDLES:
                return (Resize(pool.name, least),), f"{pool.name} would be busy only {busy:.0%} with {least}"
    return (), otherwise


def _evidence(pools: Sequence[Pool], holder: Pool) -> str:
    """What is seen of the part that holds the others up."""
    said = f"{holder.name} is the slowest ({holder.processes / holder.row_s:.3g} rows/s)"
    after = [pool for pool in pools[pools.index(holder) + 1 :] if pool.row_s > 0]
    if holder.kind == "load":
        return said + (f", {after[0].name} waits for it" if after and after[0].busy < WORKS else "")
    return said + (f", {holder.waiting} items wait for it" if holder.waiting else "")


def _with(pools: Sequence[Pool], counts: Sequence[int]) -> list[Pool]:
    return [replace(pool, processes=count) for pool, count in zip(pools, counts, strict=True)]


def _resizes(pools: Sequence[Pool], counts: Sequence[int]) -> tuple[Resize, ...]:
    return tuple(
        Resize(pool.name, count) for pool, count in zip(pools, counts, strict=True) if count != pool.processes
    )
