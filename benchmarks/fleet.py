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
from time import perf_counter, process_time
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
from shoestring.train.config import TrainConfig
from shoestring.train.task import BaseTask, LossOut, SampleIds, StepContext
from shoestring.train.worker import TrainPayload
from shoestring.train.worker import main as train_worker

ENTRY = "benchmarks.fleet:worker"
WORKERS = 2
BATCH = 1024
TURN_STEPS = 6
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


def cpu_s(pid: int) -> float:
    """Processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watching(steps: int) -> dict[str, Any]:
    """Step times (s) of the first worker by turn, watched and not; processor time of all others."""
    used: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "switched").touch()
        run = Run(Path(name), steps)

        def watch(status: m.Status) -> None:
            if WARM_STEPS < status.step < steps:
                fleet_s = cpu_s(run.host.coordinator_pid) + process_time()
                used.append((fleet_s, sum(cpu_s(run.host.worker_pid(f"w{i}")) for i in range(WORKERS))))

        run.go(watch)
        rows = json.loads((Path(name) / "w0.steps").read_text())
    turns: dict[int, list[float]] = {}
    for step, _, took_s in rows:
        # The first step of a turn lies between the two arms; the first ones of a run are not typical.
        if step > WARM_STEPS and step % TURN_STEPS > 1:
            turns.setdefault(step // TURN_STEPS, []).append(took_s)
    pairs = [(turns[t], turns[t + 1]) for t in sorted(turns) if t % 2 == 0 and t + 1 in turns]
    return {
        "pairs": pairs,
        "fleet_cpu_s": used[-1][0] - used[0][0],
        "worker_cpu_s": used[-1][1] - used[0][1],
    }


def overhead(pairs: list[tuple[list[float], list[float]]]) -> tuple[float, float, float]:
    """Median over neighbouring turns of watched/unwatched - 1, and its 95% bootstrap interval."""
    ratios = [statistics.median(on) / statistics.median(off) - 1 for on, off in pairs]
    chance = random.Random(0)
    drawn = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), drawn[50], drawn[1949]


def main() -> None:
    """Measure, print, record."""
    quick = arguments(__doc__ or "").quick
    load_entry(ENTRY)  # the workers' module: in a run the command line has imported it as well
    repeats, kills, steps = (2, 2, 200) if quick else (5, 3, 1200)
    runs = [start_and_reform(kills) for _ in range(repeats)]
    samples = {key: [value for run in runs for value in run[key]] for key in runs[0]}
    watched = watching(steps)
    cost, low, high = overhead(watched["pairs"])
    share = watched["fleet_cpu_s"] / (watched["fleet_cpu_s"] + watched["worker_cpu_s"])
    step_s = statistics.median(took_s for pair in watched["pairs"] for arm in pair for took_s in arm)
    middle = {key: statistics.median(values) for key, values in samples.items()}
    table(
        ["figure", "median", "worst"],
        [[key, f"{middle[key]:.3f} s", f"{max(samples[key]):.3f} s"] for key in samples],
    )
    print(
        f"watching a step of {step_s * 1e3:.1f} ms costs {cost:+.2%} (95%: {low:+.2%} to {high:+.2%}, "
        f"{len(watched['pairs'])} pairs of turns)\n"
        f"supervisor and coordinator use {share:.2%} of the processor time"
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
        {**samples, "watching": watched},
        {
            "start_s": round(middle["start_s"], 4),
            "reform_s": round(middle["reform_s"], 4),
            "next_step_s": round(middle["next_step_s"], 4),
            "monitor_overhead": round(cost, 5),
            "monitor_overhead_low": round(low, 5),
            "monitor_overhead_high": round(high, 5),
            "fleet_cpu_share": round(share, 5),
        },
    )


if __name__ == "__main__":
    main()
