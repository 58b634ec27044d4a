"""What one seed stands for: a run, a cluster, and the faults that it meets (source: ours).

Each seed switches on a random subset of the faults at random rates. A seed with one kind of fault
gets deep into it; a mix of all of them all the time would mostly test the first one. The idea is
swarm testing (Groce et al., ISSTA 2012).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.sim.restless import NAME

FAULT_KINDS = (
    "kill",
    "hang",
    "stall",
    "slow",
    "coordinator",
    "blackout",
    "interrupt",
    "damage",
    "disk_full",
    "ledger_full",
    "clock",
    "notice",
)


@dataclass(frozen=True)
class SimOptions:
    """Bounds of the simulation.

    Attributes:
        quiet_s: virtual seconds after which no new fault comes and no message is lost.
        limit_s: virtual seconds within which every run must be over (liveness).
        store: `sqlite` runs on the real store, in a file of a temporary directory; slower.
        flush_first: whether answers wait for the flush; False is a mutation for tests.
    """

    quiet_s: float = 6.0
    limit_s: float = 40.0
    flush_first: bool = True
    store: Literal["memory", "sqlite"] = "memory"


@dataclass(frozen=True)
class NetworkFaults:
    """Chances per message: lost, doubled, late (late ones take up to `late_s` more)."""

    loss: float
    double: float
    late: float
    late_s: float


@dataclass(frozen=True)
class Scenario:
    """One seed, spelled out.

    Attributes:
        fleet, ledger: configurations of the real classes.
        speeds: samples per virtual second of each worker, and of those that a policy may add; whoever takes
            the place of one that was given up is as slow as the slowest.
        room: worker -> samples of a pass that its memory holds; those that are missing hold any.
        network: faults of messages.
        rates: fault kind -> faults per virtual second.
        poison: positions that never work.
        flaky: position -> how often it fails before it works.
        tear: chance that a collective which a member leaves in its last moments fails for another.
        aimed: chance that a member is killed in the last moments of a collective.
    """

    fleet: FleetConfig
    ledger: LedgerSpec
    speeds: dict[str, float]
    room: dict[str, int]
    network: NetworkFaults
    rates: dict[str, float]
    poison: frozenset[int]
    flaky: dict[int, int]
    tear: float
    aimed: float


def draw(rng: random.Random) -> Scenario:
    """The scenario of the seed that `rng` starts from."""
    workers = rng.choice((1, 2, 2, 3, 3, 4))
    samples, epochs = rng.randint(10, 60), rng.choice((1, 1, 2))
    batch = rng.randint(2, 10)
    total = samples * epochs
    rates = {kind: 0.2 * 20 ** rng.random() for kind in FAULT_KINDS if rng.random() < 0.4}
    if "interrupt" in rates:
        rates["interrupt"] *= 0.2
    fleet = _fleet(rng, workers, batch, total)
    names = [f"w{i}" for i in range(fleet.members.max_workers)]
    tight = rng.random() < 0.3
    bad_samples = rng.random() < 0.4
    some = rng.sample(range(total), k=min(total // 4, 6)) if bad_samples else []
    return Scenario(
        fleet=fleet,
        ledger=LedgerSpec(
            samples=samples,
            epochs=epochs,
            seed=rng.randrange(1000),
            shuffle="samples",
            lease_s=rng.choice((0.05, 1.0, 60.0)),
            max_attempts=rng.randint(1, 3),
            max_dead_share=0.5,
        ),
        speeds={name: rng.uniform(30.0, 300.0) for name in names},
        room={name: rng.randint(1, batch) for name in names if tight and rng.random() < 0.7},
        network=_network(rng),
        rates=rates,
        poison=frozenset(some[:3]),
        flaky={position: rng.randint(1, 2) for position in some[3:]},
        tear=rng.uniform(0.1, 0.9),
        aimed=rng.choice((0.0, 0.02, 0.1)),
    )


def _fleet(rng: random.Random, workers: int, batch: int, total: int) -> FleetConfig:
    bounded = rng.random() < 0.2
    return FleetConfig(
        members=MemberConfig(
            workers=workers,
            max_workers=workers + rng.choice((0, 0, 1, 2)),
            heartbeat_s=0.2,
            heartbeat_timeout_s=rng.uniform(0.7, 1.2),
            hang_timeout_s=1.5,
            start_timeout_s=2.0,
            join_grace_s=rng.choice((0.0, 0.3, 1.0)),
            backoff_s=0.05,
            backoff_max_s=0.4,
            same_failures=rng.choice((3, 1000, 1000)),
            healthy_steps=5,
        ),
        pace=PaceConfig(
            steps=rng.randint(1, max(1, total // batch)) if bounded else 0,
            batch=batch,
            batch_start=rng.choice((0, 1)),
            batch_warmup=0.2,
        ),
        checkpoint=CheckpointConfig(
            every_s=rng.choice((0.0, 0.3, 1.0)), every_steps=rng.choice((0, 1, 3, 7)), keep=rng.randint(1, 3)
        ),
        control=ControlConfig(
            policy=rng.choice(("nd", "none", "lb-bsp", "dd", "backup", "nd-backup", NAME, NAME)),
            interval_s=0.3,
            short_window_s=1.0,
            long_window_s=5.0,
            options=PolicyOptions(cooldown_s=1.0, restart_cost_s=0.0),
        ),
    )


def _network(rng: random.Random) -> NetworkFaults:
    if rng.random() < 0.4:
        return NetworkFaults(0.0, 0.0, 0.0, 0.0)
    return NetworkFaults(
        loss=rng.choice((0.0, 0.02, 0.1)),
        double=rng.choice((0.0, 0.05, 0.2)),
        late=rng.choice((0.0, 0.05, 0.2)),
        late_s=0.05 * 60 ** rng.random(),
    )
