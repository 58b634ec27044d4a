"""Drives the elastic test on the first test host: trains over Ray, asks for a further host, drains one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import msgspec
import ray
import torch
from ray._raylet import GcsClient

from shoestring.base.clock import SystemClock
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig
from shoestring.fleet.ray_fleet import RayHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.worker import TrainPayload
from tests.train.fleets import final_state, make_launch

SAMPLES = 80_000
STEPS_BETWEEN = 60
FAR_MS = 600_000


class Changing:
    """Asks for a host once one worker steps, drains the first worker's host once two do."""

    def __init__(self, address: str, signs: Path) -> None:
        self._address = address
        self._signs = signs
        self._since = 0
        self.host: RayHost | None = None
        self.drained = ""

    def __call__(self, status: m.Status) -> None:
        """Called with each status."""
        active = [name for name, about in status.workers.items() if about["state"] == "active"]
        wanted = self._signs / "room is wanted"
        if len(active) == 1 and not wanted.exists() and status.step > STEPS_BETWEEN:
            wanted.touch()
        if len(active) < 2 or self.drained:
            return
        self._since = self._since or status.step
        if status.step > self._since + STEPS_BETWEEN and self.host is not None:
            self.drained = self.host.node_of(active[0])
            deadline_ms = FAR_MS + int(SystemClock().wall() * 1000)
            told, why = GcsClient(address=self._address).drain_node(
                self.drained, 2, "the host will be taken away", deadline_ms
            )
            assert told, why


def main(address: str, run_dir: Path, strategy: str) -> None:
    """Train until each sample is counted."""
    ray.init(address=address, log_to_driver=False)
    train = TrainConfig(
        clip_norm=0.0, schedule=ScheduleConfig(kind="constant", warmup=0.0),
        sharding=ShardingConfig(strategy=strategy),
    )  # fmt: skip
    launch = make_launch(
        run_dir, "counting", {"samples": SAMPLES}, SAMPLES, workers=2, batch=20, train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=50), members={"cpus": 1.0, "join_grace_s": 1.0},
    )  # fmt: skip
    payload = msgspec.json.decode(launch.payload, type=TrainPayload)
    apart = msgspec.structs.replace(payload, loopback=False)
    launch = dataclasses.replace(launch, payload=apart.encode())
    watch, clock = Changing(address, run_dir), SystemClock()
    watch.host = RayHost(launch, clock)
    outcome = Supervisor(launch.fleet.members, watch.host, clock, watch, Interrupts()).run()
    ray.shutdown()
    assert outcome.status == "finished", outcome
    assert watch.drained
    counts = next(final_state(launch, "counting", {"samples": SAMPLES})[0].model.parameters())
    assert torch.equal(counts.detach(), torch.ones(SAMPLES))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
