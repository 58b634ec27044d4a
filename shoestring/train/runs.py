"""Starts, resumes and ends a training run: its directory, its record, its fleet (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from pydantic import model_validator

from shoestring.base.clock import Clock
from shoestring.base.config import Config, to_toml
from shoestring.base.errors import ConfigError
from shoestring.base.record import RunRecord
from shoestring.cluster.planner import AUTO, PLAIN
from shoestring.cluster.workers import Plan, check_shared
from shoestring.control.controller import policy_named
from shoestring.control.policies import BACKUP, ND_BACKUP
from shoestring.data.ledger import LedgerSpec
from shoestring.data.shuffle import Shuffle
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.messages import Status
from shoestring.fleet.rundirs import ABOUT, About
from shoestring.fleet.runlog import facts_of, recorded
from shoestring.fleet.supervisor import Interrupts
from shoestring.fleet.transports import run_on
from shoestring.train.config import ParallelConfig, ShardingConfig, TrainConfig
from shoestring.train.worker import ENTRY, TrainPayload

PACKAGES = ("torch", "numpy", "pydantic", "msgspec", "sqlalchemy", "tokenizers")


class View(Protocol):
    """Where a run shows itself while it goes on."""

    def say(self, text: str) -> None:
        """One line for a person."""
        ...

    def status(self, status: Status) -> None:
        """The state of the fleet, several times a second."""
        ...


@dataclass(frozen=True)
class Prepared:
    """What a job has made ready.

    Attributes:
        maker: `module:function` that makes the Task in a worker.
        settings: its argument, JSON-able.
        samples: samples of an epoch.
        plan: who does what, with what was weighed.
        facts: about the data, for the record.
    """

    maker: str
    settings: dict[str, Any]
    samples: int
    plan: Plan
    facts: dict[str, Any] = field(default_factory=dict)


class JobConfig(Config):
    """What every training job's settings have in common.

    Attributes:
        parallel: what is sharded, and over which machines; the plan turns it into `train.sharding`.
    """

    job: str
    epochs: int = 1
    shuffle: Shuffle = "samples"
    max_attempts: int = 3
    max_dead_share: float = 0.01
    train: TrainConfig = TrainConfig()
    parallel: ParallelConfig = ParallelConfig()
    fleet: FleetConfig = FleetConfig()

    @model_validator(mode="after")
    def _sharding_is_planned(self) -> JobConfig:
        if self.train.sharding != ShardingConfig():
            raise ConfigError(
                "train.sharding is what the plan fills in", "set parallel.strategy, parallel.dtype and so on"
            )
        return self

    @model_validator(mode="after")
    def _ways_of_working_agree(self) -> JobConfig:
        local = self.train.sync == "edit"
        if self.fleet.pace.window_s and not local:
            raise ConfigError(
                "fleet.pace.window_s is the time of local steps, and there are none",
                "set train.sync=edit too, or leave it at 0",
            )
        self._servers_agree()
        if local and self.fleet.control.policy in (BACKUP, ND_BACKUP):
            raise ConfigError(
                "with local steps there is no step that backup workers could be left out of",
                "set fleet.pace.window_s and leave fleet.control.policy at nd: then nobody is waited for",
            )
        if (reason := self._needs_whole_state()) and self.parallel.strategy not in (AUTO, PLAIN):
            raise ConfigError(
                f"{reason} needs all of the state on each worker, and parallel.strategy is "
                f"{self.parallel.strategy}",
                f"set parallel.strategy={PLAIN}, or leave it out",
            )
        return self

    def _servers_agree(self) -> None:
        served, count = self.train.sync == "servers", self.fleet.servers.count
        if served != (count > 0):
            raise ConfigError(
                f"train.sync is {self.train.sync}, and there are {count} parameter servers",
                "set train.sync=servers and fleet.servers.count, or neither",
            )
        if served and self.fleet.transport == "inprocess":
            raise ConfigError(
                "parameter servers are processes of their own, and fleet.transport is inprocess",
                "leave fleet.transport out, or set it to local",
            )
        if served and self.fleet.control.policy in (BACKUP, ND_BACKUP):
            raise ConfigError(
                f"with parameter servers nobody is left out of an update, and fleet.control.policy is "
                f"{self.fleet.control.policy}",
                "set fleet.servers.staleness=-1: then nobody is waited for",
            )

    @property
    def sharding_wish(self) -> ParallelConfig:
        """What the plan has to heed: `parallel`, and what the way of working leaves of it."""
        if self._needs_whole_state():
            return self.parallel.model_copy(update={"strategy": PLAIN})
        return self.parallel

    def _needs_whole_state(self) -> str:
        if self.train.sync != "each_step":
            return f"train.sync={self.train.sync}"
        policy = self.fleet.control.policy
        return f"fleet.control.policy={policy}" if policy in (BACKUP, ND_BACKUP) else ""


class Job(Protocol):
    """A kind of training that can be run by name."""

    @property
    def config(self) -> JobConfig:
        """The resolved settings."""
        ...

    def prepare(self, run_dir: Path, say: Callable[[str], None]) -> Prepared:
        """Make data and plan ready; may be interrupted and called again."""
        ...

    def finish(self, run_dir: Path, record: RunRecord, view: View) -> dict[str, Any]:
        """Score the finished run; the result goes into the record."""
        ...


def start(job: Job, recipe: str, run_dir: Path, clock: Clock, view: View) -> Outcome:
    """Run a job from the beginning in a fresh directory."""
    about = About(run_dir.name, recipe, job.config.job, clock.wall())
    (run_dir / ABOUT).write_bytes(msgspec.json.encode(about))
    (run_dir / "config.toml").write_text(to_toml(job.config))
    return _go(job, about, run_dir, clock, view, resumed=False)


def resume(job: Job, about: About, run_dir: Path, clock: Clock, view: View) -> Outcome:
    """Go on with a run that was interrupted, failed or killed."""
    return _go(job, about, run_dir, clock, view, resumed=True)


def _go(job: Job, about: About, run_dir: Path, clock: Clock, view: View, resumed: bool) -> Outcome:
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    facts = facts_of(
        about, resumed, job.config.model_dump(), job.config.train.seed, PACKAGES, {"device": device}
    )
    return recorded(run_dir, facts, clock, view.say, lambda record: _run(job, run_dir, clock, view, record))


def _run(job: Job, run_dir: Path, clock: Clock, view: View, record: RunRecord) -> Outcome:
    config = job.config
    policy_named(config.fleet.control.policy)  # preparing data may take long; a wrong name shows at once
    prepared = job.prepare(run_dir, view.say)
    record.append("data", **prepared.facts)
    record.append("plan", **prepared.plan.model_dump())
    _say_plan(prepared.plan, view)
    with Interrupts() as interrupts:
        outcome = _train(config, prepared, run_dir, clock, view, interrupts)
    if outcome.status == "finished":
        began_s = clock.now()
        result = job.finish(run_dir, record, view)
        record.append("result", took_s=round(clock.now() - began_s, 3), **result)
    return outcome


def _say_plan(plan: Plan, view: View) -> None:
    view.say(f"plan: {plan.workers} workers x {plan.threads} threads ({plan.reason})")
    if plan.sharding is not None and plan.workers > 1:
        groups = plan.sharding.groups
        shape = f"{len(groups)} groups of {len(groups[0])}" if len(groups) > 1 else "one group"
        view.say(f"sharding: {plan.sharding.strategy} in {shape} ({plan.sharding.reason})")


def sharding_of(plan: Plan) -> ShardingConfig:
    """What the workers are told: rank r of the plan is worker `w{r}`."""
    if plan.sharding is None:
        return ShardingConfig()
    groups = {f"w{rank}": f"g{number}" for number, group in enumerate(plan.sharding.groups) for rank in group}
    return ShardingConfig(strategy=plan.sharding.strategy, dtype=plan.dtype, groups=groups)


def _train(
    config: JobConfig, prepared: Prepared, run_dir: Path, clock: Clock, view: View, interrupts: Interrupts
) -> Outcome:
    members = config.fleet.members.model_copy(update={"workers": prepared.plan.workers})
    sharding = sharding_of(prepared.plan)
    whole = sharding.strategy == PLAIN and config.train.sync == "each_step"
    control = config.fleet.control.model_copy(update={"whole_state": whole})
    fleet = config.fleet.model_copy(update={"members": members, "control": control})
    ledger = LedgerSpec(
        samples=prepared.samples,
        epochs=config.epochs,
        seed=config.train.seed,
        shuffle=config.shuffle,
        max_attempts=config.max_attempts,
        max_dead_share=config.max_dead_share,
    )
    transport = fleet.transport
    if transport == "auto":
        alone = max(prepared.plan.workers, members.max_workers) == 1 and not fleet.servers.count
        transport = "inprocess" if alone else "local"
    # A driver that is too old for this torch counts its GPUs all the same.
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and transport != "ray":
        check_shared(max(prepared.plan.workers, members.max_workers), gpus, sharding.strategy)
    payload = TrainPayload(
        prepared.maker,
        prepared.settings,
        config.train.model_copy(update={"sharding": sharding}).model_dump(),
        {
            "samples": ledger.samples,
            "epochs": ledger.epochs,
            "seed": ledger.seed,
            "shuffle": ledger.shuffle,
            "shard_size": ledger.shard_size,
        },
        loopback=transport != "ray",
        poll_s=fleet.servers.poll_s,
    )
    device = "cuda" if gpus else "cpu"
    launch = Launch(run_dir, fleet, ledger, ENTRY, payload.encode(), device, prepared.plan.threads)
    return run_on(transport, launch, clock, view.status, interrupts)
