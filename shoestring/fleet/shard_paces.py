"""How fast the workers of a job over rows are, as far as their shards tell (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

REMEMBERED_S = 120.0
"""What is older counts half."""
LEAST_S = 1e-3
Process = tuple[str, int]
"""Name and incarnation of a worker."""


@dataclass
class _Pace:
    since_s: float
    rows: float = 0.0


class Paces:
    """Rows that count, over the time since a worker's first shard."""

    def __init__(self) -> None:
        self._of: dict[Process, _Pace] = {}

    def began(self, now: float, worker: str, incarnation: int) -> None:
        """It has a shard; the first one counts."""
        self._of.setdefault((worker, incarnation), _Pace(now))

    def counted(self, now: float, worker: str, incarnation: int, rows: int) -> None:
        """A shard of it counts, if it is known when its first one began: a coordinator that came back knows
        it not."""
        if (worker, incarnation) not in self._of:
            self.began(now, worker, incarnation)
            return
        pace = self._of[worker, incarnation]
        pace.rows += rows
        if now - pace.since_s > REMEMBERED_S:
            pace.since_s, pace.rows = (now + pace.since_s) / 2, pace.rows / 2

    def share(self, now: float, worker: Process, others: Sequence[Process], usual: int) -> float:
        """The worker's part of the rate of all, in (0, 1].

        Args:
            usual: rows of a shard. Who has not finished one is taken for as fast as the others on average, or
                slower, once it has had it for longer than that.
        """
        every = (worker, *others)
        paces = {one: self._of[one] for one in every if one in self._of}
        known = {
            one: pace.rows / max(LEAST_S, now - pace.since_s) for one, pace in paces.items() if pace.rows
        }
        mean = sum(known.values()) / len(known) if known else 0.0
        if not mean:
            return 1 / len(every)
        rates = [known[one] if one in known else min(mean, self._most(now, one, usual)) for one in every]
        return rates[0] / sum(rates)

    def _most(self, now: float, worker: Process, usual: int) -> float:
        """Rows a second at the most, of one whose first shard is not through."""
        return usual / max(LEAST_S, now - self._of[worker].since_s) if worker in self._of else math.inf
