"""Workers that were told to leave: why, and until when (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass

SLACK_S = 15.0


@dataclass(frozen=True)
class Departure:
    """One worker's: it finishes what it has in hand until then."""

    until_s: float
    reason: str


class Departures:
    """Who leaves.

    Args:
        drain_s: how long a worker may finish what it has in hand.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._leaving: dict[str, Departure] = {}

    def order(self, now: float, worker: str, reason: str) -> bool:
        """This worker is to leave. The first order holds; returns whether this is it."""
        if worker in self._leaving:
            return False
        self._leaving[worker] = Departure(now + self._drain_s, reason)
        return True

    def of(self, worker: str) -> Departure | None:
        """What it was told; None: nothing."""
        return self._leaving[worker] if worker in self._leaving else None

    def gone(self, worker: str) -> None:
        """It is gone."""
        self._leaving.pop(worker, None)

    def overdue(self, now: float) -> dict[str, str]:
        """Workers that should have been gone for long -> why they are to be killed."""
        late = {name: now - one.until_s for name, one in self._leaving.items()}
        return {
            name: f"was to leave {late_s:.0f} s ago ({self._leaving[name].reason})"
            for name, late_s in late.items()
            if late_s > SLACK_S
        }
