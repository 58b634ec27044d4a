"""What a policy sees, what it can do, and how it says so (source: AntDT, arXiv 2404.09679: the actions;
states and options are ours)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from shoestring.base.config import Config
from shoestring.control.monitor import WorkerView


@dataclass(frozen=True)
class AdjustBatch:
    """Split the global batch by these shares, which sum to 1, from the next step on."""

    kind: ClassVar[str] = "adjust_batch"
    shares: Mapping[str, float]


@dataclass(frozen=True)
class AdjustAccumulation:
    """Samples of one forward and backward pass, by worker: its part of the batch takes as many passes as it
    needs. Nobody gets more than its memory is known to hold."""

    kind: ClassVar[str] = "adjust_accumulation"
    micro_batch: Mapping[str, int]


@dataclass(frozen=True)
class AdjustLr:
    """Scale the learning rate of the schedule by this factor."""

    kind: ClassVar[str] = "adjust_lr"
    factor: float


@dataclass(frozen=True)
class Restart:
    """End this worker's process at the next boundary and start another one, elsewhere where there is an
    elsewhere."""

    kind: ClassVar[str] = "kill_restart"
    worker: str


@dataclass(frozen=True)
class AddWorkers:
    """Start so many more workers."""

    kind: ClassVar[str] = "add_workers"
    count: int


@dataclass(frozen=True)
class RemoveWorker:
    """Let this worker go at the next boundary, for good."""

    kind: ClassVar[str] = "remove_worker"
    worker: str


@dataclass(frozen=True)
class UseBackups:
    """Go on without the slowest `count` workers of a step: what they have not computed by then goes back to
    the ledger (backup workers: Chen et al., Revisiting distributed synchronous SGD, arXiv 1604.00981).

    Attributes:
        count: 0: wait for everybody.
        grace_share: part of the time that the others took, that is waited for the late ones.
    """

    kind: ClassVar[str] = "use_backups"
    count: int
    grace_share: float = 0.0


Action = AdjustBatch | AdjustAccumulation | AdjustLr | UseBackups | Restart | AddWorkers | RemoveWorker


def in_record(action: Action) -> dict[str, Any]:
    """The action as the run record has it."""
    fields = asdict(action)
    for name, value in fields.items():
        if isinstance(value, Mapping):
            fields[name] = {key: round(one, 5) for key, one in value.items()}
    return {"action": action.kind, **fields}


@dataclass(frozen=True)
class Restarted:
    """A restart that a policy asked for: when, and the worker's speed in samples/s before."""

    at_s: float
    samples_per_s: float


@dataclass(frozen=True)
class ControlState:
    """What a policy decides from.

    Attributes:
        workers: the members of the round, as the monitor sees them.
        shares: each one's part of the global batch; they sum to 1.
        micro_batch: samples that each one takes in one pass.
        most: samples of a pass at most: what the training asks for, or what memory was found to hold.
        batch: samples of the global batch.
        lr_factor: on the schedule's learning rate.
        backups: workers that a step goes on without, and the grace that they get.
        restarts: what policies had restarted, oldest first.
        restart_s: seconds of the whole fleet's work that a restart has cost so far; 0: none yet.
        remaining_s: until the end of the run at its present speed; inf where nothing is known.
        room: how many workers may be added.
        whole_state: whether each worker holds all of the state; if not, a step needs all of them.
    """

    workers: Mapping[str, WorkerView]
    shares: Mapping[str, float]
    micro_batch: Mapping[str, int]
    most: Mapping[str, int]
    batch: int
    lr_factor: float = 1.0
    backups: tuple[int, float] = (0, 0.0)
    restarts: Mapping[str, tuple[Restarted, ...]] = field(default_factory=dict)
    restart_s: float = 0.0
    remaining_s: float = math.inf
    room: int = 0
    whole_state: bool = True


@dataclass(frozen=True)
class Decision:
    """Actions, none of which may be taken; why; and what is expected of them.

    Attributes:
        predicted: `step_time_ratio`: seconds of a step after to before. Others as a policy likes.
    """

    actions: tuple[Action, ...]
    reason: str
    predicted: Mapping[str, float] = field(default_factory=dict)


class PolicyOptions(Config):
    """What the shipped policies go by.

    Attributes:
        min_reports: reports in the short window before a worker's speed is believed.
        min_gain: predicted share of the step time that a change must save.
        sure: so many times more than what noise is expected to feign must be saved, too.
        min_share: no worker gets less than this part of an even share.
        fixed: worker -> part of the global batch, for the policy of that name; parts are scaled to sum to 1.
        slow_factor: so many times slower than the median of the others, in each slice of the long window, is
            slow for good (lambda of AntDT).
        max_restarts: of one worker in a run.
        cooldown_s: between two restarts of a worker.
        restart_cost_s: what a restart is taken to cost before one was measured.
        least_pass: fewest samples of a pass that `dd` chooses.
        backups: workers that `backup` and `nd-backup` do not wait for.
        grace_share: part of the others' time that they wait all the same, for work that is nearly done.
        lr: how the learning rate follows the samples of a step that count: `keep`, `linear`, `sqrt`.
        reference_batch: samples at which the schedule's learning rate is right; 0: `lr` does nothing.
        extra: for policies of your own.
    """

    min_reports: int = Field(default=2, ge=1)
    min_gain: float = 0.03
    sure: float = 2.0
    min_share: float = Field(default=0.05, ge=0.0, lt=1.0)
    fixed: dict[str, float] = {}
    slow_factor: float = Field(default=2.0, gt=1.0)
    max_restarts: int = 2
    cooldown_s: float = 120.0
    restart_cost_s: float = 30.0
    least_pass: int = Field(default=1, ge=1)
    backups: int = Field(default=1, ge=0)
    grace_share: float = Field(default=0.2, ge=0.0)
    lr: Literal["keep", "linear", "sqrt"] = "keep"
    reference_batch: int = Field(default=0, ge=0)
    extra: dict[str, float] = {}


class Policy(Protocol):
    """A pure function: the same arguments give the same decision, and nothing else happens."""

    def __call__(self, now: float, state: ControlState, options: PolicyOptions) -> Decision:
        """Decide from what is seen at `now`."""
        ...
