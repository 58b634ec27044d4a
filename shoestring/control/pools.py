"""How many processes each part of a pipeline should have: pure functions (source: AntBatchInfer, elastic
controller; the allotment by measured service times is ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from shoestring.base.config import Config

Kind = Literal["load", "stage", "write"]


class PoolsConfig(Config):
    """How processes are moved.

    Attributes:
        processes: of one worker in all; 0: as many as its machine has cores, and one for each part at least.
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
    """

    name: str
    kind: Kind
    processes: int
    fixed: bool
    busy: float
    cpu_share: float
    waiting: int
    row_s: float


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
