"""A synchronous run on contended machines under the real controller and policies (source: ours).

Numbers only: no processes and no messages, so a month of a thousand workers takes minutes. A step lasts as
long as its slowest worker, and the exchange; how long a worker takes follows from its machine's speed, what
else that machine has to do at the time, and noise. The monitor is told what a real worker would report.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shoestring.control.controller import ControlConfig, Controller, Effect, Facts
from shoestring.control.decisions import Decision, RemoveWorker, Restart
from shoestring.control.monitor import Monitor
from shoestring.control.splits import split

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
FORWARD = 1 / 3
"""Of a pass."""
OnDecision = Callable[[float, Decision], None]


@dataclass(frozen=True)
class Contention:
    """What disturbs the workers; all of it is drawn from the seed.

    Attributes:
        noise: relative standard deviation of a step's compute time.
        burst_every_s: mean time between bursts of others' work on a machine; inf: none.
        burst_s: mean length of a burst.
        burst_slow: from how many to how many times slower a burst makes its worker.
        bad_places: part of the places that are `bad_slow` times slower for good; a restart draws another.
        bad_slow: see there.
        turns_bad_every_s: mean time until a place turns bad while in use; inf: never.
        evicted_every_s: mean time between evictions of a worker; inf: never.
        away_s: between an eviction or a restart and the worker's return.
        reform_s: pause of the fleet whenever its members change.
    """

    noise: float = 0.05
    burst_every_s: float = math.inf
    burst_s: float = 60.0
    burst_slow: tuple[float, float] = (2.0, 8.0)
    bad_places: float = 0.0
    bad_slow: float = 4.0
    turns_bad_every_s: float = math.inf
    evicted_every_s: float = math.inf
    away_s: float = 60.0
    reform_s: float = 1.0


@dataclass(frozen=True)
class Machines:
    """Workers and the run.

    Attributes:
        speeds: samples per second of each worker, undisturbed.
        start_s: of a pass, beside its samples.
        most: samples of a pass at most.
        batch: of a step.
        exchange_s: of a step.
        slow_from_s: worker -> (time, factor): turns that much slower at that time, until it is restarted.
    """

    speeds: tuple[float, ...]
    batch: int
    start_s: float = 0.0
    most: int = 1_000_000
    exchange_s: float = 0.0
    slow_from_s: dict[int, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        took_s: virtual seconds.
        samples: done.
        steps: taken.
        decisions: (time, decision), those that changed something.
        effects: of decisions, as measured.
        restarts: (time, worker).
        needless: those of them whose worker was not slow for good.
        step_s: of each step.
    """

    took_s: float = 0.0
    samples: int = 0
    steps: int = 0
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    restarts: list[tuple[float, str]] = field(default_factory=list)
    needless: int = 0
    step_s: list[float] = field(default_factory=list)

    @property
    def samples_per_s(self) -> float:
        """Goodput."""
        return self.samples / self.took_s if self.took_s else 0.0


class Simulation:
    """One run.

    Args:
        machines: who computes what.
        contention: what disturbs them.
        config: of the controller.
        seed: of all that is drawn.
        until_s: virtual time at which it ends, for policies that ask what is left.
    """

    def __init__(
        self, machines: Machines, contention: Contention, config: ControlConfig, seed: int, until_s: float
    ) -> None:
        count = len(machines.speeds)
        self._machines = machines
        self._contention = contention
        self._rng = np.random.default_rng(seed)
        self._until_s = until_s
        self._monitor = Monitor(config.short_window_s, config.long_window_s)
        self._controller = Controller(config, self._monitor)
        self.names = tuple(f"w{number}" for number in range(count))
        self._place = {name: number for number, name in enumerate(self.names)}
        self._speeds = np.array(machines.speeds)
        self._burst_from = self._after(contention.burst_every_s, count)
        self._burst_until = np.full(count, -1.0)
        self._burst_slow = np.ones(count)
        self._bad = np.where(self._rng.random(count) < contention.bad_places, contention.bad_slow, 1.0)
        self._turns_bad = self._after(contention.turns_bad_every_s, count)
        self._evicted = self._after(contention.evicted_every_s, count)
        self._back = np.zeros(count)
        self._told: dict[int, tuple[float, float]] = dict(machines.slow_from_s)
        self._members: tuple[str, ...] = ()
        self.now = 0.0
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Until the time is over."""
        while self.now < self._until_s:
            self.step()
        self.outcome.took_s = self.now
        return self.outcome

    def slowness(self) -> Floats:
        """How many times slower than undisturbed each worker is now, [workers]."""
        burst = np.where(self.now < self._burst_until, self._burst_slow, 1.0)
        slowness: Floats = burst * self._bad
        return slowness

    def step(self) -> None:
        """One step of the fleet."""
        self._disturb()
        self._gather()
        if not self._members:
            self.now = float(self._back.min())
            return
        out = self.outcome
        left_s = max(0.0, self._until_s - self.now)
        facts = Facts(self._machines.batch, restart_s=self._restart_s(), remaining_s=left_s)
        decision = self._controller.decide(self.now, out.steps + 1, facts)
        parts = split(self._machines.batch, self._controller.shares)
        at = np.array([self._place[name] for name in self._members])
        samples = np.array([parts[name] for name in self._members])
        sizes = np.array([self._controller.pass_of(name, self._machines.batch) for name in self._members])
        passes = -(-samples // sizes)
        noise = np.exp(self._rng.normal(0.0, self._contention.noise, len(at)))
        took_s = (self._machines.start_s * passes + samples / self._speeds[at]) * self.slowness()[at] * noise
        samples, took_s, begun, passes = self._without_the_late(samples, passes, took_s)
        step_s = float(took_s.max()) + self._machines.exchange_s
        self.now += step_s
        for name, n, t, p in zip(
            self._members, begun.tolist(), took_s.tolist(), passes.tolist(), strict=True
        ):
            if self._monitor.observe(self.now, name, n, t, p):
                self._controller.hurry()
        out.steps, out.samples = out.steps + 1, out.samples + int(samples.sum())
        out.step_s.append(step_s)
        if (effect := self._controller.step_took(step_s)) is not None:
            out.effects.append(effect)
        if decision is not None and decision.actions:
            out.decisions.append((self.now, decision))
            self._carry_out(decision)

    def _without_the_late(
        self, samples: Ints, passes: Ints, took_s: Floats
    ) -> tuple[Ints, Floats, Ints, Ints]:
        """Samples that count, seconds, samples and passes that were begun, where a step goes on without its
        slowest workers.

        A late worker keeps its whole passes, or nothing where it is in the middle of a backward pass.
        """
        count, grace = self._controller.backups
        busy = np.sort(took_s[samples > 0])
        if not count or len(busy) < 2:
            return samples, took_s, samples, passes
        ends_s = float(busy[max(0, len(busy) - 1 - count)]) * (1.0 + grace)
        late = took_s > ends_s
        done = np.where(late, ends_s / np.where(late, took_s, 1.0), 1.0) * passes
        whole = np.where(done - np.floor(done) < FORWARD, np.floor(done), 0.0)
        kept: Ints = np.where(late, samples * whole // np.maximum(1, passes), samples).astype(np.int64)
        tried: Ints = np.maximum(1, np.ceil(done)).astype(np.int64)
        begun: Ints = -(-samples * tried // np.maximum(1, passes))
        return kept, np.minimum(took_s, ends_s), begun, tried

    # --- what happens to workers ---------------------------------------------------------------

    def _after(self, mean_s: float, count: int, since_s: float = 0.0) -> Floats:
        if math.isinf(mean_s):
            return np.full(count, math.inf)
        drawn: Floats = since_s + self._rng.exponential(mean_s, count)
        return drawn

    def _disturb(self) -> None:
        """Bursts, places that turn bad, evictions, up to now."""
        contention = self._contention
        (due,) = np.nonzero(self._burst_from <= self.now)
        if len(due):
            self._burst_until[due] = self.now + self._rng.exponential(contention.burst_s, len(due))
            self._burst_slow[due] = self._rng.uniform(*contention.burst_slow, len(due))
            self._burst_from[due] = self._burst_until[due] + self._after(contention.burst_every_s, len(due))
        (turned,) = np.nonzero(self._turns_bad <= self.now)
        if len(turned):
            self._bad[turned] = contention.bad_slow
            self._turns_bad[turned] = math.inf
        for place, (at_s, factor) in list(self._told.items()):
            if at_s <= self.now:
                self._bad[place] = factor
                del self._told[place]
        (gone,) = np.nonzero((self._evicted <= self.now) & (self._back <= self.now))
        for place in gone.tolist():
            self._leave(place)

    def _leave(self, place: int) -> None:
        """The worker's process ends; the next one starts in another place, later."""
        contention = self._contention
        self._back[place] = self.now + contention.away_s
        self._evicted[place] = float(self._after(contention.evicted_every_s, 1, self._back[place])[0])
        self._turns_bad[place] = float(self._after(contention.turns_bad_every_s, 1, self._back[place])[0])
        self._bad[place] = contention.bad_slow if self._rng.random() < contention.bad_places else 1.0
        self._burst_until[place] = -1.0
        self._monitor.forget(self.names[place])

    def _gather(self) -> None:
        """Who is there forms the fleet; a change costs a pause."""
        there = tuple(self.names[place] for place in np.nonzero(self._back <= self.now)[0].tolist())
        if there == self._members:
            return
        if self._members:
            self.now += self._contention.reform_s
        self._members = there
        for name in there:
            self._controller.usual[name] = self._machines.most
        self._controller.regroup(there)

    def _carry_out(self, decision: Decision) -> None:
        for action in decision.actions:
            if isinstance(action, (Restart, RemoveWorker)):
                place = self._place[action.worker]
                self.outcome.restarts.append((self.now, action.worker))
                self.outcome.needless += int(self._bad[place] <= 1.0)
                self._leave(place)

    def _restart_s(self) -> float:
        contention, count = self._contention, max(1, len(self._members))
        return 2 * contention.reform_s + contention.away_s / count


def simulate(
    machines: Machines, contention: Contention, config: ControlConfig, seed: int, until_s: float
) -> Outcome:
    """One run, to its end."""
    return Simulation(machines, contention, config, seed, until_s).run()
