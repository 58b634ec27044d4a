"""Runs many seeds and sums up what they covered (source: ours, after TigerBeetle's VOPR)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shoestring.sim.scenario import SimOptions
from shoestring.sim.world import SeedResult, World


@dataclass
class Coverage:
    """What a set of seeds went through.

    Attributes:
        seeds: how many ran.
        seen: what happened how often, over all of them.
        virtual_s: virtual seconds simulated.
        trace: checksum over the traces of all seeds.
        violation: the first broken promise; None where all were kept.
    """

    seeds: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    virtual_s: float = 0.0
    trace: int = 0
    violation: SeedResult | None = None

    def add(self, result: SeedResult) -> None:
        """Take in one seed."""
        self.seeds += 1
        self.seen.update(result.seen)
        self.virtual_s += result.virtual_s
        self.trace = (self.trace * 31 + result.trace) % 2**32
        if result.violation and self.violation is None:
            self.violation = result


MakeWorld = Callable[[int, SimOptions], World]


def run_seed(seed: int, options: SimOptions, make_world: MakeWorld = World) -> SeedResult:
    """Simulate one seed; the same seed gives the same result, event by event."""
    return make_world(seed, options).run()


def run_sims(
    seeds: Iterable[int],
    options: SimOptions,
    make_world: MakeWorld = World,
    on_seed: Callable[[Coverage], None] | None = None,
) -> Coverage:
    """Simulate seeds until one of them breaks a promise.

    Args:
        seeds: which ones.
        options: bounds.
        make_world: World, or one with a part broken on purpose.
        on_seed: called after each seed, e.g. to show progress.

    >>> run_sims(range(3), SimOptions()).violation is None
    True
    """
    coverage = Coverage()
    for seed in seeds:
        coverage.add(run_seed(seed, options, make_world))
        if on_seed is not None:
            on_seed(coverage)
        if coverage.violation is not None:
            break
    return coverage
