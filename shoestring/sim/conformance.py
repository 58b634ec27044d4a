"""Whether a policy may steer a fleet, and how well it does: for anybody's policy (source: ours).

`check` holds a policy to what every one has to keep; `measure` says how it does on machines that differ, that
are noisy, and on which others work.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

from shoestring.base.clock import Clock, SystemClock
from shoestring.control.controller import ControlConfig, policy_named, wrong
from shoestring.control.decisions import ControlState, Decision, Policy, PolicyOptions
from shoestring.control.monitor import Monitor
from shoestring.sim.contention import Contention, Machines, Outcome, simulate

SLOWEST_S = 0.25
"""Of a decision about `MANY` workers: the coordinator answers nobody meanwhile."""
MANY = 1000
CALM_S, BUSY_S = 600.0, 3600.0
UNEVEN = Machines(speeds=(100.0, 100.0, 100.0, 25.0), batch=200)
EVEN = Machines(speeds=(100.0,) * 4, batch=200, exchange_s=0.01)
NOISES = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class Finding:
    """One check: what was asked, whether it holds, and what was seen."""

    what: str
    holds: bool
    seen: str


def check(policy: Policy, options: PolicyOptions | None = None, clock: Clock | None = None) -> list[Finding]:
    """What every policy has to keep: decisions that can be carried out whatever it is shown, the same ones
    for the same state, nothing changed on the way, and in time."""
    options, clock = options or PolicyOptions(), clock or SystemClock()
    found = [_sound(policy, options, what, state) for what, state in states().items()]
    fleet = fleet_of(tuple(50.0 + number % 50 for number in range(MANY)))
    began_s = clock.now()
    problem = _problem(lambda: policy(1000.0, fleet, options), fleet)
    took_s = clock.now() - began_s
    seen = problem or f"{1000 * took_s:.0f} ms"
    found.append(Finding(f"decides about {MANY} workers in time", not problem and took_s < SLOWEST_S, seen))
    return found


def states() -> dict[str, ControlState]:
    """States that real fleets get into, by what is odd about them."""
    usual = fleet_of((100.0, 100.0, 25.0))
    nobody_seen = replace(usual, workers=Monitor(15.0, 300.0).view(0.0, tuple(usual.workers)))
    some_seen = replace(usual, workers={**usual.workers, "w1": nobody_seen.workers["w1"]})
    idle = replace(usual, shares={"w0": 1.0, "w1": 0.0, "w2": 0.0})
    return {
        "usual": usual,
        "one worker": fleet_of((100.0,)),
        "nobody was seen yet": nobody_seen,
        "a newcomer": some_seen,
        "workers without a share": idle,
        "a batch smaller than the fleet": replace(usual, batch=2),
        "passes of one sample": replace(usual, micro_batch=dict.fromkeys(usual.workers, 1)),
        "little memory": replace(usual, most={"w0": 1, "w1": 64, "w2": 3}),
        "a worker a thousand times slower": fleet_of((100.0, 100.0, 0.1)),
        "the end of the run": replace(usual, remaining_s=0.0),
        "room for more": replace(usual, room=3),
    }


def fleet_of(speeds: tuple[float, ...], batch: int = 0) -> ControlState:
    """A fleet whose workers have done steps of 12 to 23 samples at these speeds for the last 400 s."""
    names = tuple(f"w{number}" for number in range(len(speeds)))
    monitor = Monitor(15.0, 300.0)
    for name, speed in zip(names, speeds, strict=True):
        for turn in range(100):
            samples = 12 + turn % 12
            monitor.observe(600.0 + 4.0 * turn, name, samples, 0.01 + samples / speed)
    return ControlState(
        workers=monitor.view(1000.0, names),
        shares=dict.fromkeys(names, 1 / len(names)),
        micro_batch=dict.fromkeys(names, 16),
        most=dict.fromkeys(names, 16),
        batch=batch or 32 * len(names),
    )


def _sound(policy: Policy, options: PolicyOptions, what: str, state: ControlState) -> Finding:
    before = copy.deepcopy(state)
    decisions: list[Decision] = []

    def decide() -> Decision:
        decisions.append(policy(1000.0, state, options))
        return decisions[-1]

    problem = _problem(decide, state) or _problem(decide, state)
    if not problem and decisions[0] != decisions[1]:
        problem = f"two answers to one question: {decisions[0]} and {decisions[1]}"
    if not problem and state != before:
        problem = "it changed the state that it was shown"
    if not problem and not decisions[0].reason.strip():
        problem = "it gave no reason"
    return Finding(what, not problem, problem or decisions[0].reason)


def _problem(decide: Callable[[], Decision], state: ControlState) -> str:
    try:
        return wrong(decide(), state)
    except Exception as error:  # noqa: BLE001  a policy under test may raise anything
        return f"it raised {type(error).__name__}: {error}"


@dataclass(frozen=True)
class Quality:
    """How a policy does.

    Attributes:
        speedup: over leaving everything alone, where one of four workers has a quarter of the speed.
        bound: of that.
        changes: splits changed in 10 minutes on equal machines, by noise; the most of the seeds.
        false_restarts: in an hour of bursts on machines none of which is slow for good, over all seeds.
        recovery_s: from the time that a machine turns slow to the first step at nine tenths of the full speed
            that lasts; -1: it does not get there.
    """

    speedup: float
    bound: float
    changes: dict[float, int]
    false_restarts: int
    recovery_s: float


def measure(name: str, options: PolicyOptions | None = None, seeds: int = 20) -> Quality:
    """Run a policy by name where others work too.

    Raises:
        ConfigError: there is no such policy.
    """
    policy_named(name)
    each = name == "lb-bsp"
    config = ControlConfig(policy=name, interval_s=0.0 if each else 5.0, options=options or PolicyOptions())
    static = config.model_copy(update={"policy": "none"})
    calm = Contention(noise=0.05)
    ratios = [
        simulate(UNEVEN, calm, config, seed, CALM_S).samples_per_s
        / simulate(UNEVEN, calm, static, seed, CALM_S).samples_per_s
        for seed in range(min(seeds, 5))
    ]
    changes = {
        noise: max(
            len(simulate(EVEN, Contention(noise=noise), config, seed, CALM_S).decisions)
            for seed in range(seeds)
        )
        for noise in NOISES
    }
    bursts = Contention(noise=0.2, burst_every_s=120.0, burst_s=30.0)
    noisy = [simulate(EVEN, bursts, config, seed, BUSY_S) for seed in range(seeds)]
    slow = replace(EVEN, slow_from_s={2: (CALM_S, 4.0)})
    turned = simulate(slow, Contention(noise=0.05, away_s=10.0), config, 0, BUSY_S)
    total, least = sum(UNEVEN.speeds), min(UNEVEN.speeds)
    return Quality(
        speedup=statistics.median(ratios),
        bound=total / (least * len(UNEVEN.speeds)),
        changes=changes,
        false_restarts=sum(run.needless for run in noisy),
        recovery_s=recovery_s(turned, CALM_S, EVEN),
    )


def recovery_s(run: Outcome, since_s: float, machines: Machines, tail: int = 50) -> float:
    """Seconds from `since_s` until steps take no more than 10/9 of what undisturbed ones would, as the median
    of the `tail` steps that follow; -1: never."""
    full_s = machines.batch / sum(machines.speeds) + machines.exchange_s
    now, ends = 0.0, []
    for step_s in run.step_s:
        now += step_s
        ends.append(now)
    for place, end_s in enumerate(ends[:-tail]):
        following = run.step_s[place : place + tail]
        if end_s > since_s + full_s and statistics.median(following) <= full_s / 0.9:
            return end_s - since_s
    return -1.0
