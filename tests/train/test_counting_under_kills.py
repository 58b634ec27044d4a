"""The proof of "nothing lost, nothing doubled": a model that counts its samples, under real SIGKILLs.

The update adds exactly 1 to the entry of each sample used. Whatever is killed, whenever, the model of
the last checkpoint is all ones after an epoch.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.record import Events, read_events
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.names import is_server
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.sim import restless
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from tests.seeds import few
from tests.train.fleets import final_state, make_launch

SAMPLES = 3000
KILLS = 5


class ChaosHost(LocalHost):
    """Kills at seeded moments: one worker, the coordinator, or every worker at once; or what else subclasses
    choose."""

    choices = ("worker", "worker", "coordinator", "all")
    kills, gap_s = KILLS, (0.02, 0.7)

    def __init__(self, launch: Launch, clock: Clock, seed: int) -> None:
        super().__init__(launch, clock)
        self._time = clock
        self._random = random.Random(seed)
        self._next_s = clock.now() + self._random.uniform(0.1, 0.8)
        self.killed: list[str] = []

    def reap(self) -> tuple[m.Exit, ...]:
        """Called in each turn of the supervisor."""
        if len(self.killed) < self.kills and self._time.now() >= self._next_s and self.alive():
            self._kill_something()
            self._next_s = self._time.now() + self._random.uniform(*self.gap_s)
        return super().reap()

    def _kill_something(self) -> None:
        alive = sorted(self.alive())
        choice = self._random.choice(self.choices)
        if choice == "coordinator" and self.coordinator_pid:
            self.kill_coordinator()
        elif choice == "all":
            for name, incarnation in alive:
                self.kill(name, incarnation)
        else:
            those = [one for one in alive if is_server(one[0]) == (choice == "server")]
            if not those:
                return
            victim = self._random.choice(those)
            choice = victim[0]
            self.kill(*victim)
        self.killed.append(choice)


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(6, 20))
def test_all_ones_after_an_epoch_of_kills(tmp_path: Path, seed: int) -> None:
    check_all_ones(tmp_path, seed, 2 + seed % 2, ShardingConfig())


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(1, 3))
@pytest.mark.parametrize("strategy", ["IIG", "NII", "NNG", "GGG", "III"])
def test_all_ones_where_the_state_is_cut(tmp_path: Path, strategy: str, seed: int) -> None:
    groups = {"w0": "a", "w1": "a", "w2": "b", "w3": "b"}
    check_all_ones(tmp_path, seed, 4, ShardingConfig(strategy=strategy, groups=groups))


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(2, 3))
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_while_a_policy_does_all_that_it_can(tmp_path: Path, strategy: str, seed: int) -> None:
    options = PolicyOptions(extra={"keep_lr": 1.0})
    control = ControlConfig(policy=restless.NAME, interval_s=0.1, options=options)
    log = check_all_ones(tmp_path, seed, 3, ShardingConfig(strategy=strategy), control)
    taken = {action["action"] for event in log.of("decision") for action in event.get("actions", [])}
    assert {"adjust_batch", "adjust_accumulation", "kill_restart"} <= taken


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(2, 3))
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_never_above_one_where_a_sample_may_be_used_once_at_most(
    tmp_path: Path, strategy: str, seed: int
) -> None:
    train = TrainConfig(
        clip_norm=0.0,
        schedule=ScheduleConfig(kind="constant", warmup=0.0),
        sharding=ShardingConfig(strategy=strategy),
    )
    launch = make_launch(
        tmp_path, "counting", {"samples": SAMPLES}, SAMPLES, workers=3, batch=10, train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20 + seed), delivery="at_most_once",
        members={"same_failures": 1000, "backoff_s": 0.02, "backoff_max_s": 0.05},
    )  # fmt: skip
    run_under(launch, seed)
    state, _ = final_state(launch, "counting", {"samples": SAMPLES})
    counts = next(state.model.parameters()).detach()
    assert set(counts.tolist()) <= {0.0, 1.0}
    with DurableLedger.open(f"sqlite:///{tmp_path / 'ledger.db'}", launch.ledger) as ledger:
        assert ledger.counts().skipped == int((counts == 0).sum()) and not ledger.counts().todo


def check_all_ones(
    tmp_path: Path,
    seed: int,
    workers: int,
    sharding: ShardingConfig,
    control: ControlConfig | None = None,
    harm: type[ChaosHost] = ChaosHost,
    servers: int = 0,
    staleness: int = 0,
    **members: float,
) -> Events:
    train = TrainConfig(
        clip_norm=0.0, schedule=ScheduleConfig(kind="constant", warmup=0.0), sharding=sharding
    )
    launch = make_launch(
        tmp_path,
        "counting",
        {"samples": SAMPLES},
        SAMPLES,
        workers=workers,
        batch=10,
        train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20 + seed, keep=2),
        members={"same_failures": 1000, "backoff_s": 0.02, "backoff_max_s": 0.05, "max_workers": 4} | members,
        control=control,
        servers=servers,
        staleness=staleness,
    )
    host = run_under(launch, seed, harm)
    state, _ = final_state(launch, "counting", {"samples": SAMPLES})
    counts = next(state.model.parameters()).detach()
    wrong = (counts != 1).nonzero().flatten().tolist()
    assert not wrong, (
        f"{len(wrong)} samples are wrong, e.g. {wrong[0]} counted {counts[wrong[0]]}; killed {host.killed}"
    )
    log = read_events(tmp_path / "events.jsonl")
    assert not log.damage
    return log


def run_under(launch: Launch, seed: int, harm: type[ChaosHost] = ChaosHost) -> ChaosHost:
    """Run to the end while the host does harm."""
    clock = SystemClock()
    host = harm(launch, clock, seed)
    with Interrupts() as interrupts:
        outcome = Supervisor(launch.fleet.members, host, clock, lambda status: None, interrupts).run()
    assert outcome.status == "finished", outcome
    assert host.killed, "the schedule killed nothing: it proves nothing"
    return host


def test_a_chaos_host_would_be_noticed_if_it_did_nothing(tmp_path: Path) -> None:
    # The assertion on `counts` can fail: a model that has seen half of the data is not all ones.
    launch = make_launch(
        tmp_path,
        "counting",
        {"samples": 100},
        100,
        batch=10,
        steps=5,
        train=TrainConfig(clip_norm=0.0, schedule=ScheduleConfig(kind="constant", warmup=0.0)),
    )
    from tests.train.fleets import run

    assert run(launch).status == "finished"
    state, _ = final_state(launch, "counting", {"samples": 100})
    assert float(next(state.model.parameters()).detach().sum()) == 50.0
    assert torch.unique(next(state.model.parameters()).detach()).tolist() == [0.0, 1.0]
