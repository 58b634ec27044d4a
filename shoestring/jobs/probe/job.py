"""Runs a probe as a job on the fleet: one sample, one step, nothing kept but the findings (source: ours)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from shoestring.base.clock import Clock
from shoestring.base.errors import ConfigError, FleetError, InterruptedRun
from shoestring.cluster.topology import usable_cores
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.launch import Launch
from shoestring.fleet.messages import Status
from shoestring.fleet.supervisor import Interrupts
from shoestring.fleet.transports import run_on
from shoestring.jobs.probe.findings import Findings, read_findings
from shoestring.jobs.probe.worker import ENTRY, ProbePayload

Transport = Literal["local", "ray"]
HEARTBEAT_S = 0.2
START_GRACE_S = 60.0
QUIET = ("", "idle", "next", "saved")


@dataclass(frozen=True)
class ProbeOptions:
    """What to probe.

    Attributes:
        workers: ranks; 0: one for each GPU here, or else for each usable core.
        transport: `local` or `ray`.
        seconds: what the measurements may take, without the start.
        near: the directory in which the probe keeps its files while it runs; hosts of a Ray cluster share it.
    """

    workers: int
    transport: Transport
    seconds: float
    near: Path


def probe(options: ProbeOptions, clock: Clock, say: Callable[[str], None]) -> Findings:
    """Start the fleet, let it survey, return what it found; no process or file of it is left.

    Args:
        say: told what is being measured, whenever that changes.

    Raises:
        ConfigError: the options contradict each other or the machine.
        FleetError: the fleet failed; its log stays where the error says.
        InterruptedRun: Ctrl-C.
    """
    launch_dir = _directory(options)
    launch = make_launch(options, launch_dir)
    with Interrupts() as interrupts:
        progress = _Progress(say, interrupts)
        outcome = run_on(options.transport, launch, clock, progress.status, interrupts)
    if outcome.status == "failed":
        raise FleetError(f"the probe failed: {outcome.error}", f"{outcome.todo}; its logs: {launch_dir}")
    try:
        if outcome.status == "interrupted":
            raise InterruptedRun("the probe was interrupted", "start it again; nothing was written")
        return read_findings(launch_dir)
    finally:
        shutil.rmtree(launch_dir, ignore_errors=True)


def make_launch(options: ProbeOptions, run_dir: Path) -> Launch:
    """The fleet of a probe.

    Raises:
        ConfigError: as `probe`.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = options.workers
    if not workers:
        if options.transport == "ray":
            raise ConfigError("a probe over Ray does not know how many workers", "say --workers N")
        workers = torch.cuda.device_count() if device == "cuda" else usable_cores()
    if options.transport == "local" and device == "cuda" and workers > torch.cuda.device_count():
        raise ConfigError(
            f"{workers} workers, but {torch.cuda.device_count()} GPUs here",
            f"say --workers {torch.cuda.device_count()} at most",
        )
    fleet = FleetConfig(
        members=MemberConfig(workers=workers, heartbeat_s=HEARTBEAT_S, join_grace_s=START_GRACE_S),
        pace=PaceConfig(steps=1, batch=1),
        checkpoint=CheckpointConfig(every_s=0.0),
    )
    payload = ProbePayload(options.seconds, loopback=options.transport == "local")
    ledger = LedgerSpec(samples=1, epochs=1, seed=0, shuffle="none")
    return Launch(run_dir, fleet, ledger, ENTRY, payload.encode(), device, threads=1)


class _Progress:
    """Says what the workers do, and ends all at the first Ctrl-C: a probe has nothing to save."""

    def __init__(self, say: Callable[[str], None], interrupts: Interrupts) -> None:
        self._say = say
        self._interrupts = interrupts
        self._said = ""

    def status(self, status: Status) -> None:
        """Called about four times a second."""
        if self._interrupts.count:
            self._interrupts.count += 1
        for message in status.messages:
            self._say(message)
        doing = [str(facts["phase"]) for facts in status.workers.values() if facts["state"] == "active"]
        told = next((phase for phase in doing if phase not in QUIET), "")
        if told and told != self._said:
            self._said = told
            self._say(told)


def _directory(options: ProbeOptions) -> Path:
    """Local files go where temporary files go; with Ray they must be where all hosts look."""
    if options.transport == "local":
        return Path(tempfile.mkdtemp(prefix="shoestring-probe-"))
    try:
        return Path(tempfile.mkdtemp(prefix=".probe-", dir=options.near.resolve()))
    except OSError as error:
        raise ConfigError(
            f"cannot write to {options.near}: {error}", "give --output a directory that all hosts share"
        ) from error
