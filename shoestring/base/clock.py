"""The only place that reads the time (source: ours)."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where every part gets its time from; injected, so that tests and the simulator own it."""

    def now(self) -> float:
        """Seconds on a clock that never jumps; comparable within one machine's boot."""
        ...

    def wall(self) -> float:
        """Seconds since the Unix epoch, for people and records."""
        ...

    def sleep(self, duration_s: float) -> None:
        """Let `duration_s` seconds pass."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Monotonic seconds since boot (CLOCK_MONOTONIC), the same in every process of a machine."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def sleep(self, duration_s: float) -> None:
        """Block the calling thread."""
        time.sleep(duration_s)


class FakeClock:
    """A clock that only moves when told to: `advance` and `sleep` move it at once."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def wall(self) -> float:
        """Virtual seconds too."""
        return self._now_s

    def sleep(self, duration_s: float) -> None:
        """Advance by `duration_s` without waiting."""
        self.advance(duration_s)

    def advance(self, duration_s: float) -> None:
        """Move time forward.

        Raises:
            ValueError: if `duration_s` is negative.
        """
        if duration_s < 0:
            raise ValueError("time does not run backwards")
        self._now_s += duration_s
