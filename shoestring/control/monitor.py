"""What is known of each worker's speed, over a short and a long window.

Source: AntDT (arXiv 2404.09679): batch processing time (BPT) per worker, the short window for
transient stragglers, the long one for persistent ones. Window lengths, slices and the fit are ours.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

SLICES = 12
"""A worker is slow for long where it is slow in each such part of the long window: a burst is not."""
RECENT, EARLIER = 2, 3
"""Reports that show a change, and those that it is seen against."""
CHANGE, SURE = 0.25, 4.0
"""Of the time per sample; and in standard deviations of a mean of `RECENT` reports."""
JUMP, CERTAIN, LEAST_SCATTER = 0.5, 8.0, 0.05
"""A change that a single report shows: of the time per sample; in standard deviations, and the least that one
is taken for."""
ASSUMED = 0.12
"""Scatter, as a part, while too few reports were seen to tell it: in bursts there never are enough between
two changes. A report alone then has to differ by a factor of 2.6."""
ENOUGH = 10
"""Reports that tell by themselves how much they scatter."""
FEWEST = 3
"""Reports that the short window keeps for as long as the long one does: where steps are longer than it, it
would know nothing, and nobody could be found whose slowness makes them so."""
TELLING = 0.005
"""Share of the spread of batch sizes below which passes and samples cannot be told apart (1 - cos²)."""


@dataclass(frozen=True)
class Seen:
    """One report: `samples` done in `passes` forward and backward passes, in `compute_s` seconds of the
    worker's own time."""

    at_s: float
    samples: int
    compute_s: float
    passes: int = 1


@dataclass(frozen=True)
class WindowView:
    """A worker over one window: reports, samples, seconds; rates are 0 where nothing was seen.

    `error`: relative standard error of the mean time per sample, as reports scatter; 0 below two of them.
    `quickest_s`: least seconds per sample of a report (of slices only). `changed`: it begins with a change of
    speed that was sure, so that even one report tells.
    """

    reports: int
    samples: int
    compute_s: float
    error: float = 0.0
    quickest_s: float = math.inf
    changed: bool = False

    @property
    def samples_per_s(self) -> float:
        """Samples per second of the worker's own time."""
        return self.samples / self.compute_s if self.compute_s > 0 else 0.0

    @property
    def batch_time_s(self) -> float:
        """Mean batch processing time (BPT), seconds."""
        return self.compute_s / self.reports if self.reports else 0.0


NOTHING = WindowView(0, 0, 0.0)


@dataclass(frozen=True)
class Cost:
    """T(b) = start_s + per_sample_s b: seconds of one pass over b samples, fitted by least squares (AntDT,
    DD; the fit is ours). `sure`: batch sizes differed enough to tell the two terms apart; else `start_s` is
    0."""

    start_s: float
    per_sample_s: float
    sure: bool

    def of(self, samples: float, passes: int = 1) -> float:
        """Seconds for so many samples in so many passes."""
        return self.start_s * passes + self.per_sample_s * samples


@dataclass(frozen=True)
class WorkerView:
    """A worker as policies see it.

    Attributes:
        short, long: the two windows.
        last: the newest report.
        slices: the `SLICES` last whole parts of the long window, the oldest first; the same stretches of time
            for all workers.
        cost: fitted over the long window; None where nothing was seen.
    """

    short: WindowView
    long: WindowView
    last: Seen | None
    slices: tuple[WindowView, ...] = ()
    cost: Cost | None = None


class Window:
    """Reports of the last `span_s` seconds with running sums: O(1) a report.

    Args:
        span_s: how far back it looks.
        fresh: forget what was before a change of speed. Averages over both would steer by a speed that a
            worker never had. A change is when the newest `RECENT` reports differ from those before by more
            than noise explains, and by more than `CHANGE` (adaptive windowing in its simplest form; ours).
        longest_s: the `FEWEST` newest reports are kept for so long; 0: no longer than others.
    """

    def __init__(self, span_s: float, fresh: bool = False, longest_s: float = 0.0) -> None:
        self._span_s = span_s
        self._longest_s = max(span_s, longest_s)
        self._fresh = fresh
        self._scatter = 0.0
        self._known = 0.0
        self._changed = False
        self._seen: deque[Seen] = deque()
        self._empty()

    def add(self, seen: Seen) -> bool:
        """Take in a report and forget what is too old; whether it shows a change of speed by itself."""
        self._seen.append(seen)
        self._count(seen, 1)
        self._forget(seen.at_s)
        return self._fresh and self._start_afresh()

    def _start_afresh(self) -> bool:
        """Forget what was before a change, but for how much reports scatter: two do not tell that. Whether
        one report was enough to be sure."""
        count = len(self._seen)
        if count > 1 and self._change_in(1, JUMP, CERTAIN, LEAST_SCATTER):
            return True
        if count >= RECENT + EARLIER:
            self._change_in(RECENT, CHANGE, SURE, 0.0)
        return False

    def _change_in(self, recent: int, change: float, sure: float, least_scatter: float) -> bool:
        newest = [self._seen[-1 - back] for back in range(recent)]
        rates = [one.compute_s / one.samples for one in newest]
        earlier = len(self._seen) - recent
        mean = (self._rate - sum(rates)) / earlier
        if mean <= 0.0:  # what was before vanishes beside the newest
            return False
        squares = (self._rate2 - sum(rate * rate for rate in rates)) / earlier
        scatter = math.sqrt(max(0.0, squares - mean * mean))
        known = self._known
        if recent == 1 and earlier < ENOUGH:
            known = known or ASSUMED
        if recent == 1 or earlier < ENOUGH:
            scatter = max(scatter, known * mean)
        gap = mean * abs(math.log(sum(rates) / recent / mean))  # times scatter in ratios, not in differences
        one_side = min(rates) > (1.0 + change) * mean or max(rates) < mean / (1.0 + change)
        if not (one_side and gap > sure * max(scatter, least_scatter * mean) / math.sqrt(recent)):
            return False
        self._scatter = max(scatter / mean, least_scatter)
        if earlier >= ENOUGH:
            self._known = self._scatter
        while len(self._seen) > recent:
            self._count(self._seen.popleft(), -1)
        self._changed = recent == 1
        return True

    def view(self, now: float) -> WindowView:
        """The window as of `now`."""
        self._forget(now)
        count = len(self._seen)
        if not count:
            return NOTHING
        mean = self._rate / count
        variance = max(0.0, self._rate2 / count - mean * mean) * count / max(1, count - 1)
        scatter = math.sqrt(variance) / mean if count > 1 else 0.0
        if count < ENOUGH:
            scatter = max(scatter, self._scatter)
        error = scatter / math.sqrt(count)
        return WindowView(count, self._samples, self._compute_s, error, changed=self._changed)

    def cost(self, now: float) -> Cost | None:
        """Seconds of a pass by its samples; None where nothing was seen."""
        self._forget(now)
        if not self._seen:
            return None
        determinant = self._pp * self._nn - self._pn * self._pn
        even = Cost(0.0, self._nt / self._nn, sure=False)
        if determinant < TELLING * self._pp * self._nn:
            return even
        start_s = (self._pt * self._nn - self._nt * self._pn) / determinant
        per_sample_s = (self._nt * self._pp - self._pt * self._pn) / determinant
        if start_s < 0:
            return Cost(0.0, even.per_sample_s, sure=True)
        if per_sample_s < 0:
            return Cost(self._pt / self._pp, 0.0, sure=True)
        return Cost(start_s, per_sample_s, sure=True)

    def _empty(self) -> None:
        self._samples = self._pp = self._pn = self._nn = 0
        self._compute_s = self._pt = self._nt = self._rate = self._rate2 = 0.0

    def _count(self, seen: Seen, sign: int) -> None:
        n, p, t = seen.samples, seen.passes, seen.compute_s
        self._samples += sign * n
        self._compute_s += sign * t
        self._pp, self._pn, self._nn = (
            self._pp + sign * p * p,
            self._pn + sign * p * n,
            self._nn + sign * n * n,
        )
        self._pt, self._nt = self._pt + sign * p * t, self._nt + sign * n * t
        self._rate, self._rate2 = self._rate + sign * t / n, self._rate2 + sign * (t / n) ** 2

    def _forget(self, now: float) -> None:
        while self._seen and self._seen[0].at_s < now - self._span_s:
            if len(self._seen) <= FEWEST and self._seen[0].at_s >= now - self._longest_s:
                break
            self._count(self._seen.popleft(), -1)
        if not self._seen:
            self._empty()  # ends the drift of adding and subtracting floats


class Slices:
    """Sums over stretches of time that are the same for all workers."""

    def __init__(self, span_s: float) -> None:
        self._length_s = span_s / SLICES
        self._sums: deque[tuple[int, WindowView]] = deque(maxlen=SLICES + 1)

    def add(self, seen: Seen) -> None:
        """Take in a report."""
        index, before = int(seen.at_s // self._length_s), NOTHING
        if self._sums and self._sums[-1][0] == index:
            _, before = self._sums.pop()
        sums = WindowView(
            before.reports + 1,
            before.samples + seen.samples,
            before.compute_s + seen.compute_s,
            quickest_s=min(before.quickest_s, seen.compute_s / seen.samples),
        )
        self._sums.append((index, sums))

    def view(self, now: float) -> tuple[WindowView, ...]:
        """Those that are over, the oldest first; one in which nothing was seen is empty."""
        present = int(now // self._length_s)
        found = dict(self._sums)
        return tuple(found[i] if i in found else NOTHING for i in range(present - SLICES, present))


@dataclass
class _Watched:
    short: Window
    long: Window
    slices: Slices
    last: Seen


class Monitor:
    """Per-worker windows of batch processing times.

    Args:
        short_s: length of the short window, seconds.
        long_s: length of the long window, seconds.
    """

    def __init__(self, short_s: float, long_s: float) -> None:
        self._short_s = short_s
        self._long_s = long_s
        self._workers: dict[str, _Watched] = {}

    def observe(self, now: float, worker: str, samples: int, compute_s: float, passes: int = 1) -> bool:
        """Take in one step of one worker; steps without samples say nothing about speed.

        Returns:
            Whether its speed has changed, beyond doubt.
        """
        if samples <= 0 or compute_s <= 0:
            return False
        seen = Seen(now, samples, compute_s, max(1, passes))
        watched = self._workers[worker] if worker in self._workers else None
        if watched is None:
            watched = _Watched(
                Window(self._short_s, fresh=True, longest_s=self._long_s),
                Window(self._long_s),
                Slices(self._long_s),
                seen,
            )
            self._workers[worker] = watched
        watched.last = seen
        watched.long.add(seen)
        watched.slices.add(seen)
        return watched.short.add(seen)

    def forget(self, worker: str) -> None:
        """A new process starts with a clean slate."""
        self._workers.pop(worker, None)

    def view(self, now: float, workers: tuple[str, ...]) -> dict[str, WorkerView]:
        """What is known of these workers; the windows of an unseen one are empty."""
        return {worker: self._view(now, worker) for worker in workers}

    def _view(self, now: float, worker: str) -> WorkerView:
        if worker not in self._workers:
            return WorkerView(NOTHING, NOTHING, None)
        watched = self._workers[worker]
        return WorkerView(
            watched.short.view(now),
            watched.long.view(now),
            watched.last,
            watched.slices.view(now),
            watched.long.cost(now),
        )
