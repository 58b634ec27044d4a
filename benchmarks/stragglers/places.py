"""Where workers run and what disturbs them: CPU quotas that change at seeded times."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

WORKERS = 4
FULL = 0.44
"""Cores of an undisturbed worker: four of them, and what coordinates them, fit on two cores."""
SLOW = 0.25
"""Of that."""


@dataclass(frozen=True)
class Case:
    """Quotas of the places, and their changes.

    Attributes:
        shares: part of FULL that each place has, undisturbed; places after the workers' are spare.
        burst_every_s, burst_s: mean times between and of bursts, in which a place has SLOW of its share; 0:
            none.
        turns_slow_s: when place 2 turns slow for good; 0: never.
        link: rate of each place's network, and a language model is trained; None: one machine's loopback.
    """

    shares: tuple[float, ...] = (1.0,) * WORKERS
    burst_every_s: float = 0.0
    burst_s: float = 0.0
    turns_slow_s: float = 0.0
    link: str | None = None


LINK = "100mbit"
"""Of each place, where the case has a slow network."""
CASES: dict[str, Case] = {
    "even": Case(),
    "persistent": Case((1.0, 1.0, 1.0, SLOW)),
    "transient": Case(burst_every_s=20.0, burst_s=8.0),
    "both": Case((1.0, 1.0, 1.0, SLOW), burst_every_s=20.0, burst_s=8.0),
    "three speeds": Case((1.0, 1.0, 0.5, 0.25)),
    "slow link": Case(link=LINK),
    "slow link and random": Case(burst_every_s=20.0, burst_s=8.0, link=LINK),
    "slow link and fixed": Case((1.0, 1.0, 1.0, SLOW), link=LINK),
    "turns slow": Case((1.0, 1.0, 1.0, 1.0, 1.0), turns_slow_s=20.0),
}


@dataclass
class Script:
    """The quota of each place over the time of a run, from a seed.

    Args:
        case: which.
        seed: of the bursts.
    """

    case: Case
    seed: int
    changes: list[tuple[float, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        if self.case.burst_every_s:
            for place in range(WORKERS):
                at_s = rng.expovariate(1 / self.case.burst_every_s)
                while at_s < 1000.0:
                    ends_s = at_s + rng.expovariate(1 / self.case.burst_s)
                    self.changes += [(at_s, place, SLOW), (ends_s, place, 1.0)]
                    at_s = ends_s + rng.expovariate(1 / self.case.burst_every_s)
        if self.case.turns_slow_s:
            self.changes.append((self.case.turns_slow_s, 2, SLOW))
        self.changes.sort()

    def cores(self, place: int, part: float = 1.0) -> float:
        """Cores of a place while it has this part of its share."""
        return FULL * self.case.shares[place] * part

    def due(self, since_start_s: float) -> list[tuple[int, float]]:
        """(place, cores) that have changed by now, each once, in order."""
        found = []
        while self.changes and self.changes[0][0] <= since_start_s:
            _, place, part = self.changes.pop(0)
            found.append((place, self.cores(place, part)))
        return found
