"""What a person wants to see of a job over rows while it goes on (source: ours)."""

from __future__ import annotations

import msgspec


class PoolShown(msgspec.Struct, frozen=True):
    """A pool of processes of one worker.

    Attributes:
        kind: `load`, `stage` or `write`.
        busy: share of its processes' time in which they worked, in [0, 1].
        waiting: items queued before it.
        rows_per_s: source rows that went through it, of late.
        row_s: seconds of one process's work for one source row; 0: not known yet.
        cpu_share: share of that work that used a core.
        batch: items of a batch; 0 where it has none.
        restarts: of its processes, so far.
        memory_bytes: of its largest process.
    """

    name: str
    kind: str
    processes: int
    busy: float = 0.0
    waiting: int = 0
    rows_per_s: float = 0.0
    row_s: float = 0.0
    cpu_share: float = 1.0
    batch: int = 0
    restarts: int = 0
    memory_bytes: int = 0


class JobStatus(msgspec.Struct, frozen=True):
    """A job over rows.

    Attributes:
        rows: in all; `done` of them are in committed output, `failed` of those with an error.
        begun: rows that are in hand.
        rows_per_s: of late; `eta_s`: until the end at that rate (0: not known).
        errors: kind -> rows.
        pools: worker -> its pools in the order of the flow.
    """

    rows: int = 0
    done: int = 0
    failed: int = 0
    begun: int = 0
    shards: int = 0
    rows_per_s: float = 0.0
    eta_s: float = 0.0
    errors: dict[str, int] = {}
    not_numbers: dict[str, int] = {}
    pools: dict[str, tuple[PoolShown, ...]] = {}
