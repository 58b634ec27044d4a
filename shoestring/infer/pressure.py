"""How much may be read ahead: pure functions, and the budget they go by (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 1 << 20, 64 << 20
CHUNKS = 16
"""The budget should hold that many chunks, so that one more or less does not matter."""
SPARE_SHARE = 0.1
"""Of all shared memory, left to others."""
CROWDED_SHARE = 0.1
"""Of what a worker could have: while its rows hold more than that, a table without room is not to blame."""


@dataclass
class Budget:
    """Bytes of memory: of shared memory for rows in flight, and of what processes hold beside it.

    Attributes:
        limit_bytes: of shared memory, of this worker.
        total_bytes: of shared memory on this machine; `free_bytes` of it nobody uses now.
        held_bytes: of this worker's segments when that was looked at.
        processes_bytes: that all processes of this worker should hold together; 0: not known.
    """

    limit_bytes: int
    total_bytes: int
    free_bytes: int
    held_bytes: int = 0
    processes_bytes: int = 0

    @property
    def chunk_bytes(self) -> int:
        """A read should not have more."""
        return max(LEAST_CHUNK_BYTES, min(MOST_CHUNK_BYTES, self.limit_bytes // CHUNKS))

    @property
    def crowded(self) -> bool:
        """Whether it may be other rows, or others, that leave a table no room."""
        mine = self.held_bytes > CROWDED_SHARE * (self.held_bytes + self.free_bytes)
        return mine or self.free_bytes < SPARE_SHARE * self.total_bytes

    @property
    def now_bytes(self) -> int:
        """What may be held at the moment: others may have filled what is shared with them."""
        spare = int(SPARE_SHARE * self.total_bytes)
        return max(0, min(self.limit_bytes, self.held_bytes + self.free_bytes - spare))


def may_read(wanted: bool, would_hold_bytes: float, budget_bytes: int, idle: bool) -> bool:
    """Whether another chunk may be read.

    Args:
        wanted: the stages that get it do not have enough waiting.
        would_hold_bytes: with the chunk.
        idle: nothing at all is at work or waits for a stage: only another chunk of the oldest shard can get
            things going again, and free the memory it takes.
    """
    return wanted and (would_hold_bytes <= budget_bytes or idle)


def read_rows(chunk_rows: int, row_bytes: float, chunk_bytes: int) -> int:
    """Rows of a read: the usual number, or fewer where rows are large."""
    return max(1, min(chunk_rows, int(chunk_bytes / row_bytes))) if row_bytes > 0 else chunk_rows


def process_bytes(processes_bytes: int, held_by_others_bytes: int, processes: int) -> int:
    """What each process of a pool should hold at most: what the other pools leave of a worker's memory.

    Args:
        processes_bytes: of all processes of the worker; 0: not known, and so the result is no bound, 0.
        held_by_others_bytes: by the processes of the other pools, as measured.
        processes: that the pool should have.
    """
    if not processes_bytes:
        return 0
    return max(1, (processes_bytes - held_by_others_bytes) // max(1, processes))


def default_bytes(wanted_bytes: int, memory_bytes: int, total_bytes: int, free_bytes: int) -> int:
    """The budget: as set, else a quarter of the worker's memory; never more than there is.

    Args:
        wanted_bytes: `limits.segment_bytes`; 0: not set.
        memory_bytes: of the machine, divided among its workers.
        total_bytes, free_bytes: of the place that segments are in.
    """
    most = max(LEAST_CHUNK_BYTES, free_bytes - int(SPARE_SHARE * total_bytes))
    return min(wanted_bytes or memory_bytes // 4, most)
