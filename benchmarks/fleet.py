"""Start of a fleet, re-forming after a kill, and what watching costs a training step.

Start: from the call, everything imported, to the first round. Re-form: from SIGKILL of one of two
workers to the round of the survivor, and on to its first applied step. Watching: one run in which
heartbeats, step reports and their records are on and off in turns of a few steps, so that whatever
else happens on the machine meets both alike; steps of some 50 ms and more on one core each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from benchmarks.common import arguments, finish, table
from shoestring.base.clock import SystemClock
from shoestring.base.record import read_events
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet import messages as m
from shoestring.fleet.channel import Channel, WorkerContext
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.launch import Launch, load_entry
from shoestring.fleet.local import LocalHost
from shoestring.fleet.supervisor import Interrupts, OnStatus, Supervisor
from shoestring.train.loop import TrainConfig
from shoestring.train.task import BaseTask, LossOut, SampleIds, StepContext
from shoestring.train.worker import TrainPayload
from shoestring.train.worker import main as train_worker

ENTRY = "benchmarks.fleet:worker"
WORKERS = 2
BATCH = 1024
TURN_STEPS = 10
WARM_STEPS = 20


class LoadTask(BaseTask):
    """An MLP whose step takes some 50 ms and more on one core; its data is made up."""

    samples = 10_000_000

    def build(self, device: torch.device) -> nn.Module:
        return nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 512)).to(device)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-3)

    def load(self, ids: SampleIds) -> Any:
        return torch.randn(len(ids), 512)

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        return LossOut((model(batch) - batch).square().sum(), float(len(ids)))


def make_task(settings: dict[str, Any], run_dir: Path) -> LoadTask:
    """For the training worker."""
    return LoadTask()


class Switched:
    """A channel that leaves out heartbeats and reports in every other turn, and times the steps."""

    def __init__(self, channel: Channel, shared: dict[str, Any]) -> None:
        self._channel = channel
        self._shared = shared

    def call(self, request: m.Request) -> m.Reply:
        """Pass on what the turn lets through."""
        watched = self._shared["watched"]
        if isinstance(request, m.Heartbeat) and not watched:
            return m.Ack()
        if isinstance(request, m.Next) and not watched:
            request = m.Next(request.worker, request.incarnation, request.round_id, request.step)
        reply = self._channel.call(request)
        if isinstance(reply, m.Order):
            now_s = perf_counter()
            self._shared["steps"].append((reply.step, watched, now_s - self._shared["last_s"]))
            self._shared["last_s"] = now_s
            self._shared["watched"] = reply.step // TURN_STEPS % 2 == 0
        return reply

    def close(self) -> None:
        """Close the line."""
        self._channel.close()


def worker(context: WorkerContext) -> None:
    """The training worker, with the switch where the run asks for it."""
    if not (context.run_dir / "switched").exists():
        train_worker(context)
        return
    shared: dict[str, Any] = {"watched": True, "steps": [], "last_s": perf_counter()}
    train_worker(replace(context, open_channel=lambda: Switched(context.open_channel(), shared)))
    (context.run_dir / f"{context.name}.steps").write_text(json.dumps(shared["steps"]))


class Run:
    """One fleet in a directory of its own."""

    def __init__(self, run_dir: Path, steps: int) -> None:
        fleet = FleetConfig(
            members=MemberConfig(workers=WORKERS),
            pace=PaceConfig(steps=steps, batch=BATCH),
            checkpoint=CheckpointConfig(every_s=0.0),
        )
        spec = LedgerSpec(samples=LoadTask.samples, shuffle="none")
        order = {"samples": spec.samples, "shuffle": "none"}
        train = TrainConfig(micro_batch=BATCH // WORKERS).model_dump()
        payload = TrainPayload("benchmarks.fleet:make_task", {}, train, order).encode()
        launch = Launch(run_dir, fleet, spec, ENTRY, payload)
        self.run_dir, self.clock = run_dir, SystemClock()
        self.began_wall_s = self.clock.wall()
        self.host = LocalHost(launch, self.clock)
        self._members = fleet.members

    def go(self, on_status: OnStatus) -> list[dict[str, Any]]:
        """Run to the end; returns the events of the record."""
        outcome = Supervisor(self._members, self.host, self.clock, on_status, Interrupts()).run()
        assert outcome.status == "finished", outcome
        return read_events(self.run_dir / "events.jsonl").events


def start_and_reform(kills: int) -> dict[str, list[float]]:
    """Seconds to the first round; from each kill to the next round, and to the next applied step."""
    killed: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name), steps=WARM_STEPS * (kills + 1))

        def watch(status: m.Status) -> None:
            ready = [w["state"] for w in status.workers.values()] == ["active"] * WORKERS
            due = WARM_STEPS * (len(killed) + 1) - WARM_STEPS // 2
            if ready and len(killed) < kills and status.step >= due:
                killed.append(run.clock.wall())
                os.kill(run.host.worker_pid("w1"), signal.SIGKILL)

        events = run.go(watch)
    rounds = [e["wall_s"] for e in events if e["kind"] == "round"]
    steps = [e["wall_s"] for e in events if e["kind"] == "step"]
    formed = [min(at_s for at_s in rounds if at_s > kill_s) for kill_s in killed]
    assert len(killed) == kills
    return {
        "start_s": [rounds[0] - run.began_wall_s],
        "reform_s": [at_s - kill_s for at_s, kill_s in zip(formed, killed, strict=True)],
        "next_step_s": [
            min(s for s in steps if s > at_s) - kill_s for at_s, kill_s in zip(formed, killed, strict=True)
        ],
    }


def watching(steps: int) -> dict[str, list[float]]:
    """Step times (s) of the first worker with watching on and off."""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "switched").touch()
        Run(Path(name), steps).go(lambda status: None)
        rows = json.loads((Path(name) / "w0.steps").read_text())
    # The first step of a turn is between the two, the first ones of a run are not typical.
    kept = [row for row in rows if row[0] > WARM_STEPS and row[0] % TURN_STEPS > 1]
    return {"on": [row[2] for row in kept if row[1]], "off": [row[2] for row in kept if not row[1]]}


def interval(on: list[float], off: list[float], draws: int = 2000) -> tuple[float, float]:
    """A 95% bootstrap interval of the relative difference of the medians."""
    chance = random.Random(0)

    def drawn(arm: list[float]) -> float:
        return statistics.median(chance.choices(arm, k=len(arm)))

    differences = sorted(drawn(on) / drawn(off) - 1 for _ in range(draws))
    return differences[int(draws * 0.025)], differences[int(draws * 0.975)]


def main() -> None:
    """Measure, print, record."""
    quick = arguments(__doc__ or "").quick
    load_entry(ENTRY)  # the workers' module: in a run the command line has imported it as well
    repeats, kills, steps = (2, 2, 200) if quick else (5, 3, 1200)
    runs = [start_and_reform(kills) for _ in range(repeats)]
    samples = {key: [value for run in runs for value in run[key]] for key in runs[0]}
    watched = watching(steps)
    on, off = (statistics.median(watched[arm]) for arm in ("on", "off"))
    low, high = interval(watched["on"], watched["off"])
    middle = {key: statistics.median(values) for key, values in samples.items()}
    table(
        ["figure", "median", "worst"],
        [[key, f"{middle[key]:.3f} s", f"{max(samples[key]):.3f} s"] for key in samples],
    )
    print(
        f"a step takes {on * 1e3:.2f} ms watched, {off * 1e3:.2f} ms unwatched: {on / off - 1:+.2%} "
        f"(95%: {low:+.2%} to {high:+.2%}, {len(watched['on'])} and {len(watched['off'])} steps)"
    )
    finish(
        "fleet",
        {
            "quick": quick,
            "workers": WORKERS,
            "batch": BATCH,
            "turn_steps": TURN_STEPS,
            "steps": steps,
            "kills": kills,
            "repeats": repeats,
        },
        {**samples, "step_s": watched},
        {
            "start_s": round(middle["start_s"], 4),
            "reform_s": round(middle["reform_s"], 4),
            "next_step_s": round(middle["next_step_s"], 4),
            "monitor_overhead": round(on / off - 1, 5),
            "monitor_overhead_low": round(low, 5),
            "monitor_overhead_high": round(high, 5),
        },
    )


if __name__ == "__main__":
    main()
