"""The network between workers is cut while they train, and heals: every sample counts once all the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.lab import Lab, LabConfig
from benchmarks.stragglers import placed
from shoestring.base.clock import Clock, SystemClock
from shoestring.base.record import Events, read_events
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.worker import TrainPayload
from tests.benchmarks.lab_helpers import needs_lab
from tests.train.fleets import final_state, make_launch, steps_told

SAMPLES = 6000
CUTS = 2


class CuttingHost(LocalHost):
    """Cuts one host off when some steps are done, for a while, some times; the coordinator is reached by a
    Unix socket, which no partition cuts."""

    def __init__(self, launch: Launch, clock: Clock, lab: Lab, length_s: float) -> None:
        super().__init__(launch, clock)
        self._lab = lab
        self._time = clock
        self._length_s = length_s
        self._heals_s: float | None = None
        self.cuts = 0

    def reap(self) -> tuple[m.Exit, ...]:
        """Called in each turn of the supervisor."""
        if self._heals_s is not None:
            if self._time.now() >= self._heals_s:
                self._lab.heal()
                self._heals_s = None
        elif self.cuts < CUTS and steps_told(self._launch) > 40 * (self.cuts + 1):
            self._lab.partition([0, 1], [2])
            self._heals_s, self.cuts = self._time.now() + self._length_s, self.cuts + 1
        return super().reap()


@pytest.mark.faults
@pytest.mark.exclusive
@pytest.mark.long
@needs_lab
@pytest.mark.parametrize("length_s", [2.0, 12.0])
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_where_the_network_is_cut_and_heals(tmp_path: Path, strategy: str, length_s: float) -> None:
    train = TrainConfig(
        clip_norm=0.0, schedule=ScheduleConfig(kind="constant", warmup=0.0), exchange_timeout_s=5.0,
        sharding=ShardingConfig(strategy=strategy),
    )  # fmt: skip
    launch = make_launch(
        tmp_path, "counting", {"samples": SAMPLES}, SAMPLES, workers=3, batch=20, train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=50), members={"same_failures": 1000},
    )  # fmt: skip
    rounds = run_while_cut(launch, {"w0": 0, "w1": 1, "w2": 2}, length_s).of("round")
    assert (len(rounds) > 1) == (length_s > train.exchange_timeout_s), [event["reason"] for event in rounds]


@pytest.mark.faults
@pytest.mark.exclusive
@pytest.mark.long
@needs_lab
@pytest.mark.parametrize("alone", ["w2", "s1"])
@pytest.mark.parametrize("staleness", [0, -1])
def test_all_ones_where_a_worker_or_a_server_is_cut_off(tmp_path: Path, staleness: int, alone: str) -> None:
    train = TrainConfig(
        clip_norm=0.0, schedule=ScheduleConfig(kind="constant", warmup=0.0), exchange_timeout_s=5.0
    )
    launch = make_launch(
        tmp_path, "counting", {"samples": SAMPLES}, SAMPLES, workers=3, batch=20, train=train, servers=2,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=50), members={"same_failures": 1000},
        staleness=staleness,
    )  # fmt: skip
    places = {"w0": 0, "w1": 1, "w2": 1, "s0": 0, "s1": 0} | {alone: 2}
    # Where nobody waits for who is cut off, the others may be through before a second cut.
    record = run_while_cut(launch, places, 12.0, least=1)
    # A line that is cut is told; nobody is taken for dead, and nothing begins anew.
    gone = [fault for fault in record.of("fault") if "left the servers" not in fault["reason"]]
    assert len(record.of("round")) == 1 and not gone, "servers keep what they hold"


def run_while_cut(launch: Launch, places: dict[str, int], length_s: float, least: int = CUTS) -> Events:
    """Train with each process on its host, the last of which is cut off for a while, at least so many times;
    the record."""
    clock = SystemClock()
    with Lab(LabConfig(hosts=3)) as lab:
        payload = msgspec.json.decode(launch.payload, type=TrainPayload)
        hosts = {name: lab.hosts[place].netns_path for name, place in places.items()}
        apart = msgspec.structs.replace(
            payload, settings=payload.settings | {placed.HOSTS: hosts}, loopback=False
        )
        launch = dataclasses.replace(launch, entry=placed.ENTRY, payload=apart.encode())
        host = CuttingHost(launch, clock, lab, length_s)
        with Interrupts() as interrupts:
            outcome = Supervisor(launch.fleet.members, host, clock, lambda status: None, interrupts).run()
    assert outcome.status == "finished", outcome
    assert host.cuts >= least
    state, _ = final_state(launch, "counting", {"samples": SAMPLES})
    counts = next(state.model.parameters()).detach()
    assert torch.equal(counts, torch.ones(SAMPLES))
    return read_events(launch.run_dir / "events.jsonl")
