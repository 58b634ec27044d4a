"""Our own training under quotas: a real local fleet, each worker's process in its place's cgroup."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lab import Lab
from benchmarks.stragglers import placed, task, words
from benchmarks.stragglers.places import WORKERS, Script
from shoestring.base.clock import Clock, SystemClock
from shoestring.base.record import read_events
from shoestring.cluster.strategies import parse_strategy
from shoestring.control.controller import ControlConfig
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig, ServersConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.names import is_server
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.parallel import tensorfiles
from shoestring.parallel.paro import Alone
from shoestring.train.config import TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.state import TrainState
from shoestring.train.worker import ENTRY, TrainPayload


class QuotaHost(LocalHost):
    """Puts each worker into a place, and changes the places' quotas as a script says.

    A worker's second process goes to the next spare place, where there is one: that is what a restart is for.
    """

    def __init__(self, launch: Launch, clock: Clock, lab: Lab, script: Script) -> None:
        super().__init__(launch, clock)
        self._lab = lab
        self._script = script
        self._events = launch.run_dir / "events.jsonl"
        self._now = clock
        self._place = {f"w{number}": number for number in range(WORKERS)}
        self._spare = list(range(WORKERS, len(script.case.shares)))
        self.began_s: float | None = None

    def spawn(self, name: str, incarnation: int) -> None:
        """Start a worker, then move it. Servers stay outside of the places, as in clusters that have some."""
        if is_server(name):
            super().spawn(name, incarnation)
            return
        if incarnation > 1 and self._spare:
            self._place[name] = self._spare.pop(0)
        super().spawn(name, incarnation)
        self._lab.adopt(self._place[name], self.worker_pid(name))

    def reap(self) -> tuple[m.Exit, ...]:
        """Called in each turn of the supervisor."""
        if self.began_s is None and self._events.exists() and read_events(self._events).of("round"):
            self.began_s = self._now.now()
        if self.began_s is not None:
            for place, cores in self._script.due(self._now.now() - self.began_s):
                self._lab.set_cpu(place, cores)
        return super().reap()


@dataclass(frozen=True)
class How:
    """What an arm is: its policy, its bounds, its settings of the loop."""

    control: ControlConfig
    pace: dict[str, Any]
    train: dict[str, Any]
    servers: ServersConfig


def run(
    lab: Lab, script: Script, how: How, steps: int, batch: int, micro_batch: int, seed: int
) -> dict[str, Any]:
    """Train for so many steps; the times are those of the run record."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as name:
        launch = _launch(Path(name), lab, script, how, steps, batch, micro_batch, seed)
        host = QuotaHost(launch, clock, lab, script)
        with Interrupts() as interrupts:
            outcome = Supervisor(launch.fleet.members, host, clock, lambda _: None, interrupts).run()
        if outcome.status != "finished":
            raise SystemExit(f"the run was not to the end: {outcome}")
        log = read_events(launch.run_dir / "events.jsonl")
        began_s = log.of("round")[0]["wall_s"]
        done = log.of("step")
        return {
            "took_s": done[-1]["wall_s"] - began_s,
            "samples": sum(sum(w["samples"] for w in step["workers"].values()) for step in done),
            "step_s": [step["took_s"] for step in done],
            "ends_s": [step["wall_s"] - began_s for step in done],
            "losses": [step["metrics"]["loss"] for step in done],
            "workers": [step["workers"] for step in done],
            "decisions": [
                _decision(event, began_s) for event in log.of("decision") if event["action"] != "none"
            ],
            "effects": [event["reason"] for event in log.of("effect")],
            "faults": [event["reason"] for event in log.of("fault")],
            "held_out": _held_out(launch, _task_of(script)),
        }


def _decision(event: dict[str, Any], began_s: float) -> dict[str, Any]:
    kept = ("action", "step", "reason", "shares", "predicted")
    return {"at_s": event["wall_s"] - began_s, **{key: event[key] for key in kept if key in event}}


def _task_of(script: Script) -> Any:
    return words if script.case.link is not None else task


def _held_out(launch: Launch, about: Any) -> float:
    newest = sorted((launch.run_dir / "checkpoints").glob("step-????????"))[-1]
    state = TrainState(about.make({}, launch.run_dir), torch.device("cpu"), 0)
    state.lay_out(parse_strategy("NNN"), Alone(), "as_is", "as_is")
    tensorfiles.read(state.tensors(), newest)
    loss: float = about.held_out_loss(state.model)
    return loss


def _launch(
    run_dir: Path, lab: Lab, script: Script, how: How, steps: int, batch: int, micro_batch: int, seed: int
) -> Launch:
    fleet = FleetConfig(
        members=MemberConfig(workers=WORKERS),
        pace=PaceConfig(batch=batch, **how.pace),
        checkpoint=CheckpointConfig(every_s=0.0),
        control=how.control,
        servers=how.servers,
    )
    train = TrainConfig(
        seed=seed, micro_batch=micro_batch, threads=1, schedule=ScheduleConfig(kind="constant", warmup=0.0),
        **how.train,
    )  # fmt: skip
    # Whoever has no bound in steps ends with the data: the same number of samples.
    samples = _task_of(script).SAMPLES if "steps" in how.pace else steps * batch
    ledger = LedgerSpec(samples=samples, epochs=1, seed=seed, shuffle="shards")
    order = {"samples": ledger.samples, "epochs": 1, "seed": seed, "shuffle": "shards",
             "shard_size": ledger.shard_size}  # fmt: skip
    linked = script.case.link is not None
    settings = {placed.HOSTS: {f"w{i}": lab.hosts[i].netns_path for i in range(WORKERS)}} if linked else {}
    maker = f"{_task_of(script).__name__}:make"
    payload = TrainPayload(maker, settings, train.model_dump(), order, loopback=not linked)
    return Launch(run_dir, fleet, ledger, placed.ENTRY if linked else ENTRY, payload.encode(), threads=1)
