"""Settings of the fleet; every default stands here and nowhere else."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shoestring.base.config import Config
from shoestring.control.controller import ControlConfig


class MemberConfig(Config):
    """How workers are watched and restarted.

    Attributes:
        workers: how many workers to run; 0: the plan decides.
        max_workers: how many a policy may have in all; 0: as many as `workers`.
        heartbeat_s: a worker says that often that it lives.
        heartbeat_timeout_s: silence that long means hung (stopped, swapped out, cut off).
        hang_timeout_s: a single phase of own work that lasts longer means hung.
        start_timeout_s: from the order to start until the first sign of life.
        regroup_timeout_s: once a round is over, a worker that neither joins again nor does work of its own
            for that long is stuck in a collective that cannot end.
        join_grace_s: a round without surviving state waits that long for starting workers.
        backoff_s: pause before the first restart; doubles with each failure in a row.
        backoff_max_s: upper bound of that pause.
        same_failures: a worker that fails that often in a row in the same way is given up.
        cpus: over Ray, cores that a host must have free for a worker, which waits until one has; 0: any host.
        healthy_steps: applied steps after which earlier failures are forgotten.
    """

    workers: int = 1
    max_workers: int = 0
    heartbeat_s: float = 1.0
    heartbeat_timeout_s: float = 15.0
    hang_timeout_s: float = 300.0
    start_timeout_s: float = 120.0
    regroup_timeout_s: float = 30.0
    join_grace_s: float = 5.0
    backoff_s: float = 0.1
    backoff_max_s: float = 30.0
    same_failures: int = 3
    cpus: float = Field(default=0.0, ge=0.0)
    healthy_steps: int = 20


class PaceConfig(Config):
    """How long the run is and how large its batches are.

    Attributes:
        steps: optimizer steps in all; 0: no bound.
        budget_s: training time in all, seconds; 0: no bound. The run ends at whichever bound,
            or at the end of the data, comes first.
        batch: samples of a global batch.
        batch_start: samples of the first global batches; 0: `batch` from the start.
        window_s: with local steps (`train.sync=edit`), seconds between synchronisations: workers do what they
            can in it and give the rest back; 0: each does its part of `batch`.
        batch_warmup: share of the run over which the batch grows from `batch_start` to `batch`.
    """

    steps: int = 0
    budget_s: float = 0.0
    batch: int = 32
    batch_start: int = 0
    batch_warmup: float = 0.0
    window_s: float = Field(default=0.0, ge=0.0)


class CheckpointConfig(Config):
    """`every_s` seconds or `every_steps` steps between checkpoints (0: off); the last `keep` stay."""

    every_s: float = 60.0
    every_steps: int = 0
    keep: int = 2


class DrillConfig(Config):
    """A fault on purpose: `kill` names a worker that gets SIGKILL once `at_progress` is reached."""

    kill: str = ""
    at_progress: float = 0.5


class ServersConfig(Config):
    """Parameter servers (`train.sync=servers`).

    Attributes:
        count: servers, each a process with a shard of parameters and optimizer state; 0: none.
        staleness: how many pushes a worker may be ahead of the slowest one. 0: bulk-synchronous, all parts of
            a batch make one update; above: each push is an update of its own; -1: asynchronous, nobody waits.
        poll_s: how often a server that nobody asks looks for news.
    """

    count: int = Field(default=0, ge=0)
    staleness: int = Field(default=0, ge=-1)
    poll_s: float = Field(default=0.05, gt=0.0)


class FleetConfig(Config):
    """All that the fleet goes by.

    `transport`: `inprocess` runs one worker in the process that was started, `local` runs worker
    processes on this machine, `ray` runs them on a Ray cluster; `auto` takes the least that serves.
    """

    transport: Literal["auto", "inprocess", "local", "ray"] = "auto"

    members: MemberConfig = MemberConfig()
    pace: PaceConfig = PaceConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    control: ControlConfig = ControlConfig()
    drill: DrillConfig = DrillConfig()
    servers: ServersConfig = ServersConfig()
