"""The Task contract: all that a job brings to the training loop (source: ours).

A new kind of training is a new Task, never a change of the loop. What makes any split of the
global batch over workers and micro-batches give the single-process update is that everything a
Task returns is a *sum over samples*: the loop adds the sums of all workers and divides once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SampleIds = NDArray[np.int64]


def _no_name(name: str) -> bool:
    return False


@dataclass(frozen=True)
class ParallelLayout:
    """How a model may be sharded, declared beside it.

    Attributes:
        units: modules that are gathered as one, in the order of use; None: the elements of its ModuleLists.
        methods: of the model, other than forward, that a loss may call.
        keeps_fp32: whether a parameter, by name, has to stay in fp32 where others compute in bf16.
        initial: for a model that was built on the meta device, its parameters and buffers by name, one at a
            time;
            None: it has to be built whole before it can be cut.
    """

    units: Sequence[nn.Module] | None = None
    methods: tuple[str, ...] = ()
    keeps_fp32: Callable[[str], bool] = _no_name
    initial: Callable[[nn.Module], Iterable[tuple[str, Tensor]]] | None = None


@dataclass(frozen=True)
class StepContext:
    """Where in the run a batch is used.

    Randomness must come from (`seed`, `step`, sample id), never from the worker, or the result
    would depend on who computed what.
    """

    step: int
    progress: float
    seed: int


@dataclass
class LossOut:
    """Sums over the samples of one micro-batch.

    Attributes:
        loss_sum: scalar, differentiable; sum of the samples' losses.
        weight: what the summed gradient is divided by in the end, e.g. the number of tokens.
        metrics: name -> scalar sum, shown divided by the total weight.
        counts: name -> scalar sum, shown as it is (tokens, bytes).
        stats: name -> tensor of sums for `Task.absorb`.
    """

    loss_sum: Tensor
    weight: float
    metrics: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    stats: dict[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    """What a job brings.

    Attributes:
        samples: how many samples an epoch has.
        metrics, counts: the names that every LossOut carries, so that a worker without samples
            in a step can still take part in the sums.
        reduction: `mean`: the gradient is the sum over samples divided by the total weight;
            `sum`: it is not divided.
    """

    samples: int
    metrics: tuple[str, ...]
    counts: tuple[str, ...]
    reduction: Literal["mean", "sum"]

    def build(self, device: torch.device) -> nn.Module:
        """The model (or a module that holds several), initialised from torch's seeded generator."""
        ...

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer; each param group's `lr` is the peak that the schedule scales."""
        ...

    def load(self, ids: SampleIds) -> Any:
        """Read the samples.

        Raises:
            SampleError: some cannot be used; the loop reports them and goes on with the rest.
        """
        ...

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        """The micro-batch's sums. May run models without gradient first to make its training data."""
        ...

    def stats(self, model: nn.Module) -> dict[str, Tensor]:
        """Zeros in the shapes of LossOut.stats; empty where there are none."""
        ...

    def absorb(self, model: nn.Module, stats: dict[str, Tensor]) -> None:
        """Take in the stats of the whole global batch, before the update; the same on every worker."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Score the model on held-out data."""
        ...

    def parallel_layout(self, model: nn.Module) -> ParallelLayout:
        """How the model may be sharded."""
        ...


class BaseTask:
    """Defaults for tasks that need no stats, no names and no layout of their own."""

    metrics: tuple[str, ...] = ()
    counts: tuple[str, ...] = ()
    reduction: Literal["mean", "sum"] = "mean"

    def stats(self, model: nn.Module) -> dict[str, Tensor]:
        """None."""
        return {}

    def absorb(self, model: nn.Module, stats: dict[str, Tensor]) -> None:
        """Nothing to take in."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nothing to score."""
        return {}

    def parallel_layout(self, model: nn.Module) -> ParallelLayout:
        """By the model's ModuleLists."""
        return ParallelLayout()
