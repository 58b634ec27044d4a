"""A rank is killed: seconds to training again from peers, and from disk where nobody else holds its state.

A real fleet of four local workers, each pair on a test host of its own, with a slow link between. The run
record says when each step was applied and where each shard came from. `python -m benchmarks.network.recovery
CASE` runs one case and prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from benchmarks.common import table
from benchmarks.lab import Lab, LabConfig, enter
from benchmarks.network.arms import PartError, child
from shoestring.base.clock import Clock, SystemClock
from shoestring.base.record import read_events
from shoestring.control.controller import ControlConfig
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet import messages as m
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.train import worker as training
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.task import BaseTask, LossOut, SampleIds, StepContext

WIDTH, LAYERS = 1400, 4
HOSTS, WORKERS, BATCH = 2, 4, 16
INTER, INTRA, DEVICE = "200mbit", "4gbit", "inter0"
STEPS, CHECKPOINT_EVERY, KILL_AFTER = 11, 3, 5
SILENCE_S = 30.0
CASES = ("IIG one", "NII one", "GGG one", "IIG early", "IIG all", "NII all")
"""Strategy, and who is killed: `one` worker, LATE in a step; `early`: at its start, while parameters still
travel between the groups; `all`: nothing is left but the checkpoint."""
LATE = 0.7
"""Of a step's time."""


class Layers(BaseTask):
    """A stack of products of 8 million parameters on fixed random data."""

    samples = 4096

    def build(self, device: torch.device) -> nn.Module:
        """See Task."""
        return Stack()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See Task."""
        return torch.optim.AdamW(model.parameters(), lr=1e-4)

    def load(self, ids: SampleIds) -> Tensor:
        """See Task: fp32 [samples, WIDTH], each sample fixed by its number."""
        rows = [torch.randn(WIDTH, generator=torch.Generator().manual_seed(int(i))) for i in ids]
        return torch.stack(rows)

    def loss(self, model: nn.Module, batch: Tensor, ids: SampleIds, context: StepContext) -> LossOut:
        """See Task."""
        squared: Tensor = (model(batch.bfloat16()) - batch.roll(1, 1)).square().mean(1)
        return LossOut(squared.sum(), float(len(ids)))


class Stack(nn.Module):
    """LAYERS square products with tanh between."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        """[B, WIDTH] -> [B, WIDTH]."""
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x.float()


def make(settings: dict[str, Any], run_dir: Path) -> Layers:
    """The task; the settings are for `worker`."""
    return Layers()


def worker(context: WorkerContext) -> None:
    """A training worker that first moves to its test host."""
    payload = msgspec.json.decode(context.payload, type=training.TrainPayload)
    enter(payload.settings["hosts"][context.name])
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    training.main(context)


@dataclass(frozen=True)
class Kill:
    """What was killed, when: seconds since the epoch, and the step applied last before."""

    wall_s: float
    step: int
    names: tuple[str, ...]


class KillingHost(LocalHost):
    """Kills one worker, or all, once enough steps were applied.

    Args:
        who: see CASES.
    """

    def __init__(self, launch: Launch, clock: Clock, who: str) -> None:
        super().__init__(launch, clock)
        self._events = launch.run_dir / "events.jsonl"
        self._time = clock
        self._who = who
        self._due_s: float | None = None
        self.kill_done: Kill | None = None

    def reap(self) -> tuple[m.Exit, ...]:
        """Called in each turn of the supervisor."""
        if self.kill_done is None and self._due_s is None and self._events.exists():
            events = read_events(self._events).of("step")
            if len(events) > 1 and events[-1]["step"] >= KILL_AFTER:
                period_s = events[-1]["wall_s"] - events[-2]["wall_s"]
                late_s = 0.0 if self._who == "early" else LATE * period_s
                self._due_s = events[-1]["wall_s"] + late_s
        if self.kill_done is None and self._due_s is not None and self._time.wall() >= self._due_s:
            self._kill()
        return super().reap()

    def _kill(self) -> None:
        alive = sorted(self.alive())
        chosen = alive if self._who == "all" else alive[-1:]
        for name, incarnation in chosen:
            self.kill(name, incarnation)
        step = max(event["step"] for event in read_events(self._events).of("step"))
        self.kill_done = Kill(self._time.wall(), step, tuple(name for name, _ in chosen))


def measure(quick: bool) -> dict[str, Any]:
    """Samples and figures of this part."""
    rows, failed = [], {}
    for case in CASES[:1] if quick else CASES:
        print(f"recovery, {case}", flush=True)
        try:
            rows.append(child("benchmarks.network.recovery", [case], 150.0))
        except PartError as error:
            failed[case] = str(error)
            print(f"  failed: {str(error)[-300:]}", flush=True)
    table(
        ["", "from", "next step s", "all back s", "caught up s", "peer MB", "disk MB"],
        [
            [
                row["case"], row["source"], f"{row['next_step_s']:.2f}", f"{row['all_back_s']:.2f}",
                f"{row['caught_up_s']:.2f}", f"{row['peer_bytes'] / 1e6:.1f}",
                f"{row['disk_bytes'] / 1e6:.1f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    figures = {f"recovery_{row['case'].replace(' ', '_')}_s": round(row["next_step_s"], 2) for row in rows}
    flags = {"parameters": LAYERS * WIDTH * (WIDTH + 1), "inter": INTER, "checkpoint_every": CHECKPOINT_EVERY}
    return {"samples": {"rows": rows, "failed": failed}, "figures": figures, "flags": flags}


def main(case: str) -> None:
    """Run one case and print what came of it."""
    strategy, who = case.split()
    clock = SystemClock()
    config = LabConfig(hosts=HOSTS, ranks=WORKERS // HOSTS, inter=INTER, intra=INTRA)
    with tempfile.TemporaryDirectory() as name, Lab(config) as lab:
        launch = _launch(Path(name), strategy, [host.netns_path for host in lab.hosts])
        host = KillingHost(launch, clock, who)
        with Interrupts() as interrupts:
            outcome = Supervisor(launch.fleet.members, host, clock, lambda _: None, interrupts).run()
        if outcome.status != "finished" or host.kill_done is None:
            logs = "".join(path.read_text()[-1500:] for path in sorted((Path(name) / "logs").glob("*.log")))
            raise PartError(f"{case}: the run was not to the end: {outcome}; killed {host.kill_done}", logs)
        times = _times(launch.run_dir / "events.jsonl", host.kill_done)
        print(json.dumps({"case": case, **times}), flush=True)


def _launch(run_dir: Path, strategy: str, places: list[str]) -> Launch:
    names = [f"w{number}" for number in range(WORKERS)]
    share = WORKERS // HOSTS
    groups = {name: f"g{number // share}" for number, name in enumerate(names)}
    fleet = FleetConfig(
        members=MemberConfig(workers=WORKERS, heartbeat_s=0.2, join_grace_s=20.0),
        pace=PaceConfig(steps=STEPS, batch=BATCH),
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=CHECKPOINT_EVERY),
        control=ControlConfig(policy="none", interval_s=0.0),
    )
    train = TrainConfig(
        clip_norm=0.0, micro_batch=BATCH, schedule=ScheduleConfig(kind="constant", warmup=0.0),
        exchange_timeout_s=SILENCE_S, sharding=ShardingConfig(strategy=strategy, dtype="bf16", groups=groups),
    )  # fmt: skip
    ledger = LedgerSpec(samples=Layers.samples, epochs=1, seed=0, shuffle="samples")
    order = {"samples": Layers.samples, "epochs": 1, "seed": 0, "shuffle": "samples",
             "shard_size": ledger.shard_size}  # fmt: skip
    hosts = {name: places[number // share] for number, name in enumerate(names)}
    payload = training.TrainPayload(
        "benchmarks.network.recovery:make", {"hosts": hosts}, train.model_dump(), order, loopback=False
    )
    return Launch(run_dir, fleet, ledger, "benchmarks.network.recovery:worker", payload.encode())


def _times(log: Path, kill: Kill) -> dict[str, Any]:
    """Seconds from the kill to steps, and where the shards came from, by the run record."""
    events = read_events(log)
    steps = [event for event in events.of("step") if event["wall_s"] > kill.wall_s]
    recoveries = [event for event in events.of("recovery") if event["wall_s"] > kill.wall_s]
    rounds = [event for event in events.of("round") if event["wall_s"] > kill.wall_s]
    sizes = {key: sum(event[key] for event in recoveries) for key in
             ("own_bytes", "peer_bytes", "rounded_bytes", "disk_bytes")}  # fmt: skip
    whole = [event for event in rounds if len(event["members"]) == WORKERS]
    back = [step for step in steps if whole and step["wall_s"] > whole[0]["wall_s"]]
    caught_up = [step for step in steps if step["step"] > kill.step]
    return {
        "killed": kill.names,
        "at_step": kill.step,
        "source": rounds[0]["state_from"] if rounds else "",
        "next_step_s": steps[0]["wall_s"] - kill.wall_s,
        "all_back_s": back[0]["wall_s"] - kill.wall_s if back else float("nan"),
        "caught_up_s": caught_up[0]["wall_s"] - kill.wall_s if caught_up else float("nan"),
        "rounds": [{key: event[key] for key in event if key != "kind"} for event in rounds],
        "recoveries": recoveries,
        "step_wall_s": [step["wall_s"] - kill.wall_s for step in steps],
        **sizes,
    }


if __name__ == "__main__":
    main(sys.argv[1])
