"""Starts small fleets for tests: real processes, real ledger, tasks from tests.train.tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from shoestring.base.clock import SystemClock
from shoestring.cluster.strategies import parse_strategy
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig, ServersConfig
from shoestring.fleet.inprocess import run_inprocess
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.local import run_local
from shoestring.fleet.messages import Status
from shoestring.fleet.supervisor import Interrupts
from shoestring.parallel import tensorfiles
from shoestring.parallel.paro import Alone
from shoestring.train.config import TrainConfig
from shoestring.train.state import TrainState
from shoestring.train.worker import ENTRY, TrainPayload, make_task

TASKS = "tests.train.tasks"
Delivery = Literal["at_least_once", "at_most_once"]


def make_launch(
    run_dir: Path,
    task: str,
    settings: dict[str, Any],
    samples: int,
    *,
    workers: int = 1,
    batch: int = 32,
    steps: int = 0,
    epochs: int = 1,
    shares: dict[str, float] | None = None,
    train: TrainConfig | None = None,
    checkpoint: CheckpointConfig | None = None,
    members: dict[str, Any] | None = None,
    control: ControlConfig | None = None,
    window_s: float = 0.0,
    servers: int = 0,
    staleness: int = 0,
    delivery: Delivery = "at_least_once",
) -> Launch:
    """A launch of `tests.train.tasks:task`."""
    control = control or ControlConfig(
        policy="fixed" if shares else "none", interval_s=0.0, options=PolicyOptions(fixed=shares or {})
    )
    fleet = FleetConfig(
        members=MemberConfig(
            **{"workers": workers, "heartbeat_s": 0.2, "join_grace_s": 20.0} | (members or {})
        ),
        pace=PaceConfig(steps=steps, batch=batch, window_s=window_s),
        checkpoint=checkpoint or CheckpointConfig(every_s=0.0),
        control=control,
        servers=ServersConfig(count=servers, staleness=staleness),
    )
    train = train or TrainConfig(clip_norm=0.0)
    if servers:
        train = train.model_copy(update={"sync": "servers"})
    ledger = LedgerSpec(samples=samples, epochs=epochs, seed=train.seed, shuffle="samples", delivery=delivery)
    order = {
        "samples": samples,
        "epochs": epochs,
        "seed": train.seed,
        "shuffle": "samples",
        "shard_size": ledger.shard_size,
    }
    payload = TrainPayload(f"{TASKS}:{task}", settings, train.model_dump(), order)
    return Launch(run_dir, fleet, ledger, ENTRY, payload.encode())


def run(launch: Launch, on_status: Any = None) -> Outcome:
    """Run to the end: in process for one worker, as local processes for more."""
    alone = launch.fleet.members.workers == 1 and not launch.fleet.servers.count
    start = run_inprocess if alone else run_local

    def ignore(status: Status) -> None:
        return None

    with Interrupts() as interrupts:
        return start(launch, SystemClock(), on_status or ignore, interrupts)


def final_state(launch: Launch, task: str, settings: dict[str, Any]) -> tuple[TrainState, Path]:
    """The state in the newest checkpoint of a run."""
    newest = sorted((launch.run_dir / "checkpoints").glob("step-????????"))[-1]
    made = make_task(f"{TASKS}:{task}", settings, launch.run_dir)
    state = TrainState(made, torch.device("cpu"), 0)
    state.lay_out(parse_strategy("NNN"), Alone(), "as_is", "as_is")
    tensorfiles.read(state.tensors(), newest)
    return state, newest


def steps_told(launch: Launch) -> int:
    """How many steps stand in the record so far."""
    events = launch.run_dir / "events.jsonl"
    return events.read_text().count('"kind":"step"') if events.exists() else 0
