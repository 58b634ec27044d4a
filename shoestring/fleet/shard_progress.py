"""How far a job over rows is, how fast, and what went wrong so far (source: ours)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

from shoestring.data.output_state import Output, Staged, add_counts
from shoestring.fleet.job_status import JobStatus, PoolShown

WINDOW_S = 30.0
ROWS_EVERY_S = 1.0
POOLS_EVERY_S = 2.0
KINDS_TOLD = 5


class Totals(msgspec.Struct):
    """Of committed output: rows, those with an error by kind, values that are NaN by column, files."""

    rows: int = 0
    failed: int = 0
    shards: int = 0
    errors: dict[str, int] = {}
    not_numbers: dict[str, int] = {}

    def add(self, staged: Staged) -> None:
        """Another file."""
        self.rows += staged.rows
        self.failed += staged.failed
        self.shards += 1
        add_counts(self.errors, staged.errors)
        add_counts(self.not_numbers, staged.not_numbers)

    def worst(self) -> str:
        """Errors by kind in words, the most frequent first."""
        kinds = sorted(self.errors.items(), key=lambda item: (-item[1], item[0]))
        told = "; ".join(f"{kind}: {count}" for kind, count in kinds[:KINDS_TOLD])
        return told + (f"; and {len(kinds) - KINDS_TOLD} kinds more" if len(kinds) > KINDS_TOLD else "")


class Telling:
    """What one worker last said.

    Attributes:
        changes, faults: how many of either are in the record.
    """

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.pools: tuple[PoolShown, ...] = ()
        self.begun = 0
        self.changes = self.faults = 0
        self.next_pools_s = -math.inf


class Progress:
    """See the module.

    Args:
        rows: of the job.
        outputs: committed before.
        now: the time.
    """

    def __init__(self, rows: int, outputs: Iterable[Output], now: float) -> None:
        self.rows = rows
        self.totals = Totals()
        for output in outputs:
            self.totals.add(output.staged)
        self._committed: deque[tuple[float, int]] = deque([(now, self.totals.rows)])
        self._tellings: dict[str, Telling] = {}
        self._next_rows_s = now + ROWS_EVERY_S

    # --- hearing -------------------------------------------------------------------------------

    def counted(self, now: float, staged: Staged) -> None:
        """A file is in the next commit."""
        self.totals.add(staged)
        self._committed.append((now, self.totals.rows))

    def telling(self, worker: str, incarnation: int) -> Telling:
        """What this process of a worker has said; nothing yet, where it is new."""
        if worker not in self._tellings or self._tellings[worker].incarnation != incarnation:
            self._tellings[worker] = Telling(incarnation)
        return self._tellings[worker]

    def gone(self, worker: str) -> None:
        """What it said is of the past."""
        self._tellings.pop(worker, None)

    # --- looking -------------------------------------------------------------------------------

    @property
    def begun(self) -> int:
        """Rows in hand, as the workers say."""
        return sum(telling.begun for telling in self._tellings.values())

    def rows_per_s(self, now: float) -> float:
        """Of late: by what was committed; before anything was, by what the slowest stage of each worker
        does."""
        while len(self._committed) > 2 and self._committed[1][0] < now - WINDOW_S:
            self._committed.popleft()
        since_s, before = self._committed[0]
        if self.totals.rows > before and now > since_s:
            return (self.totals.rows - before) / (now - since_s)
        speeds = [
            [pool.rows_per_s for pool in telling.pools if pool.kind == "stage"]
            for telling in self._tellings.values()
        ]
        return sum(min(of_worker) for of_worker in speeds if of_worker)

    def status(self, now: float) -> JobStatus:
        """For a person."""
        speed = self.rows_per_s(now)
        left = self.rows - self.totals.rows
        return JobStatus(
            rows=self.rows,
            done=self.totals.rows,
            failed=self.totals.failed,
            begun=self.begun,
            shards=self.totals.shards,
            rows_per_s=speed,
            eta_s=left / speed if speed > 0 else 0.0,
            errors=dict(self.totals.errors),
            not_numbers=dict(self.totals.not_numbers),
            pools={name: telling.pools for name, telling in sorted(self._tellings.items())},
        )

    # --- for the record ------------------------------------------------------------------------

    def rows_event(self, now: float) -> dict[str, Any] | None:
        """Fields of the event `rows`, when one is due."""
        if now < self._next_rows_s:
            return None
        self._next_rows_s = now + ROWS_EVERY_S
        return {
            "done": self.totals.rows,
            "failed": self.totals.failed,
            "begun": self.begun,
            "rows_per_s": round(self.rows_per_s(now), 3),
            "errors": dict(self.totals.errors),
        }

    def pools_event(self, now: float, telling: Telling) -> list[dict[str, Any]] | None:
        """Its pools as dicts, when it is time for them in the record; rarer where there are many workers."""
        if not telling.pools or now < telling.next_pools_s:
            return None
        telling.next_pools_s = now + POOLS_EVERY_S * max(1.0, len(self._tellings) / 16)
        return [msgspec.structs.asdict(pool) for pool in telling.pools]

    def facts(self) -> dict[str, Any]:
        """Of the whole job, for its manifest and the record."""
        totals = self.totals
        return {
            "rows": totals.rows,
            "failed": totals.failed,
            "shards": totals.shards,
            "errors": dict(totals.errors),
            "not_numbers": dict(totals.not_numbers),
        }


def too_many(totals: Totals, pending: int, rows: int, share: float, least: int) -> str:
    """Why the job fails for its errors; empty: it does not.

    Args:
        pending: rows that are given up, but not in committed output yet.
        rows: of the job; `share` of them may have an error, and `least` in any case.
    """
    failed = totals.failed + pending
    allowed = max(least, math.floor(share * rows))
    if failed <= allowed:
        return ""
    told = totals.worst()
    lost = f"{'; ' if told else ''}lost with their worker, not written yet: {pending}" if pending else ""
    return f"{failed} of {rows} rows have an error, more than {allowed} that are allowed ({told}{lost})"
