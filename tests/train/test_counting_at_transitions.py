"""A worker, or the coordinator, is killed (SIGKILL) at each transition, and every sample counts once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shoestring.base.clock import Clock
from shoestring.base.record import read_events
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.sim import restless
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from tests.train.fleets import final_state, make_launch, run
from tests.train.tasks import PLACES
from tests.train.test_counting_under_kills import ChaosHost, run_under

SAMPLES = 3000
STEADY = ScheduleConfig(kind="constant", warmup=0.0)
MEMBERS = {"same_failures": 1000, "backoff_s": 0.02, "backoff_max_s": 0.05}
EVENTS = ("round", "step", "checkpoint", "adjust_batch", "adjust_accumulation", "use_backups",
          "kill_restart", "restore")  # fmt: skip


def counting(root: Path, task: str, strategy: str, policy: str = "none", **settings: str) -> Launch:
    train = TrainConfig(clip_norm=0.0, schedule=STEADY, sharding=ShardingConfig(strategy=strategy))
    return make_launch(
        root, task, {"samples": SAMPLES, **settings}, SAMPLES, workers=3, batch=10, train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20), members=MEMBERS,
        control=ControlConfig(
            policy=policy, interval_s=0.1, options=PolicyOptions(extra={"keep_lr": 1.0})
        ),
    )  # fmt: skip


def served(root: Path, task: str, staleness: int, **settings: str) -> Launch:
    train = TrainConfig(clip_norm=0.0, schedule=STEADY)
    return make_launch(
        root, task, {"samples": SAMPLES, **settings}, SAMPLES, workers=3, batch=10, train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20), members=MEMBERS, servers=2,
        staleness=staleness,
    )  # fmt: skip


def check(launch: Launch) -> None:
    state, _ = final_state(launch, "counting", {"samples": SAMPLES})
    counts = next(state.model.parameters()).detach()
    assert torch.equal(counts, torch.ones(SAMPLES))


@pytest.mark.faults
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_a_worker_dies_in_each_part_of_a_step(tmp_path: Path, strategy: str, place: str) -> None:
    launch = counting(tmp_path, "dying", strategy, place=place, marks=str(tmp_path))
    assert run(launch).status == "finished"
    check(launch)
    assert (tmp_path / f"died in {place}").exists() and read_events(tmp_path / "events.jsonl").of("fault")


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("staleness", [0, -1])
def test_a_server_or_a_worker_dies_in_each_part_of_a_push(
    tmp_path: Path, staleness: int, place: str
) -> None:
    """Updates and what is absorbed are a server's, the rest a worker's."""
    launch = served(tmp_path, "dying", staleness, place=place, marks=str(tmp_path))
    assert run(launch).status == "finished"
    check(launch)
    faults = read_events(tmp_path / "events.jsonl").of("fault")
    assert (tmp_path / f"died in {place}").exists() and faults
    # Who lost a line may tell it before the death of the process at its other end is seen.
    lost = [fault["worker"] for fault in faults if "is gone" in fault["reason"]]
    assert len(lost) == 1
    if place in ("absorb", "update", "updated"):
        assert lost[0].startswith("s")


class AtEvent(ChaosHost):
    """Kills the coordinator, and on other occasions a worker, as soon as an event stands in the record."""

    kind, whom = "", ""

    def __init__(self, launch: Launch, clock: Clock, seed: int) -> None:
        super().__init__(launch, clock, seed)
        self._record = launch.run_dir / "events.jsonl"
        self._seen = 0

    def reap(self) -> tuple[m.Exit, ...]:
        """Called in each turn of the supervisor."""
        found = 0
        if self._record.exists():
            log = read_events(self._record).events
            found = sum(self.kind == e["kind"] or self.kind in str(e.get("action", "")) for e in log)
        if found > self._seen + 1 and len(self.killed) < 4:  # not for the first, which is the start
            self._strike()
            self._seen = found
        return LocalHost.reap(self)

    def _strike(self) -> None:
        alive = sorted(self.alive())
        if self.whom == "coordinator" and self.coordinator_pid:
            self.kill_coordinator()
            self.killed.append("coordinator")
        elif self.whom == "worker" and alive:
            self.kill(*self._random.choice(alive))
            self.killed.append("worker")


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("whom", ["coordinator", "worker"])
def test_somebody_is_killed_right_after_each_kind_of_event(tmp_path: Path, whom: str, kind: str) -> None:
    launch = counting(tmp_path, "counting", "NNN" if whom == "worker" else "GGG", policy=restless.NAME)
    occasion = "checkpoint" if kind == "restore" and whom == "worker" else kind
    harm = type("AtThis", (AtEvent,), {"kind": occasion, "whom": whom})
    run_under(launch, 1, harm)
    check(launch)


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("kind", ["step", "checkpoint"])
@pytest.mark.parametrize("whom", ["coordinator", "worker"])
def test_somebody_of_a_served_fleet_is_killed_right_after_each_kind_of_event(
    tmp_path: Path, whom: str, kind: str
) -> None:
    """A worker or a server, as it comes."""
    launch = served(tmp_path, "counting", -1)
    run_under(launch, 1, type("AtThis", (AtEvent,), {"kind": kind, "whom": whom}))
    check(launch)
