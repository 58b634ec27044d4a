"""What is known of each worker's speed, over a short and a long window.

Source: AntDT (arXiv 2404.09679): batch processing time (BPT) per worker, the short window for
transient stragglers, the long one for persistent ones. Window lengths are ours.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Seen:
    """One report: `samples` done in `compute_s` seconds of the worker's own time."""

    at_s: float
    samples: int
    compute_s: float


@dataclass(frozen=True)
class WindowView:
    """A worker over one window: reports, samples, seconds; rates are 0 where nothing was seen."""

    reports: int
    samples: int
    compute_s: float

    @property
    def samples_per_s(self) -> float:
        """Samples per second of the worker's own time."""
        return self.samples / self.compute_s if self.compute_s > 0 else 0.0

    @property
    def batch_time_s(self) -> float:
        """Mean batch processing time (BPT), seconds."""
        return self.compute_s / self.reports if self.reports else 0.0


@dataclass(frozen=True)
class WorkerView:
    """A worker as policies see it."""

    short: WindowView
    long: WindowView
    last: Seen | None


class Window:
    """Reports of the last `span_s` seconds with running sums: O(1) a report."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._seen: deque[Seen] = deque()
        self._samples = 0
        self._compute_s = 0.0

    def add(self, seen: Seen) -> None:
        """Take in a report and forget what is too old."""
        self._seen.append(seen)
        self._samples += seen.samples
        self._compute_s += seen.compute_s
        self._forget(seen.at_s)

    def view(self, now: float) -> WindowView:
        """The window as of `now`."""
        self._forget(now)
        return WindowView(len(self._seen), self._samples, self._compute_s if self._seen else 0.0)

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0].at_s < now - self._span_s:
            old = self._seen.popleft()
            self._samples -= old.samples
            self._compute_s -= old.compute_s
        if not self._seen:
            self._compute_s = 0.0  # ends the drift of adding and subtracting floats


class Monitor:
    """Per-worker windows of batch processing times.

    Args:
        short_s: length of the short window, seconds.
        long_s: length of the long window, seconds.
    """

    def __init__(self, short_s: float, long_s: float) -> None:
        self._short_s = short_s
        self._long_s = long_s
        self._short: dict[str, Window] = {}
        self._long: dict[str, Window] = {}
        self._last: dict[str, Seen] = {}

    def observe(self, now: float, worker: str, samples: int, compute_s: float) -> None:
        """Take in one step of one worker; steps without samples say nothing about speed."""
        if samples <= 0 or compute_s <= 0:
            return
        seen = Seen(now, samples, compute_s)
        self._short.setdefault(worker, Window(self._short_s)).add(seen)
        self._long.setdefault(worker, Window(self._long_s)).add(seen)
        self._last[worker] = seen

    def forget(self, worker: str) -> None:
        """A new process starts with a clean slate."""
        for table in (self._short, self._long):
            table.pop(worker, None)
        self._last.pop(worker, None)

    def view(self, now: float, workers: tuple[str, ...]) -> dict[str, WorkerView]:
        """What is known of these workers; the windows of an unseen one are empty."""
        empty = WindowView(0, 0, 0.0)
        return {
            worker: WorkerView(
                self._short[worker].view(now) if worker in self._short else empty,
                self._long[worker].view(now) if worker in self._long else empty,
                self._last[worker] if worker in self._last else None,
            )
            for worker in workers
        }
