"""The sums of one step beside the gradient: gathered over micro-batches, exchanged once (source: ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.parallel.group import Group
from shoestring.parallel.paro import ShardedOptimizer
from shoestring.train.task import LossOut, Task


class Sums:
    """Loss, weight, metrics, counts and stats of one step, as sums over samples.

    Exchanged in one small float64 vector, so that counts stay exact, together with what the optimizer has to
    know of all ranks' gradients. Layout: loss, weight, metrics, counts, stats; then the optimizer's facts.
    """

    def __init__(self, task: Task, model: torch.nn.Module, device: torch.device) -> None:
        self._task = task
        self._stats = task.stats(model)
        self._names = ["loss", "weight", *task.metrics, *task.counts]
        self._size = len(self._names) + sum(tensor.numel() for tensor in self._stats.values())
        self._vector = torch.zeros(self._size, dtype=torch.float64, device=device)
        self._facts = self._vector.new_zeros(0)

    def add(self, out: LossOut) -> None:
        """Take in one micro-batch, whose gradient autograd has added already."""
        values = {"loss": out.loss_sum.detach(), "weight": out.weight, **out.metrics, **out.counts}
        scalars = [
            torch.as_tensor(values[name], device=self._vector.device).double().reshape(1)
            for name in self._names
        ]
        parts = [
            out.stats[name].detach().double().reshape(-1).to(self._vector.device) for name in self._stats
        ]
        self._vector += torch.cat(scalars + parts)

    def merge(self, other: Sums) -> None:
        """Take in the sums of further micro-batches."""
        self._vector += other._vector

    def share(self, group: Group) -> None:
        """Sum all but gradients over the members of the round.

        Raises:
            PeerLostError: a member is gone.
        """
        self._vector = group.sum_(self._vector)

    def exchange(self, group: Group, optimizer: ShardedOptimizer) -> None:
        """Sum gradients and all else over the members of the round; on return all know the same.

        Raises:
            PeerLostError: a member is gone; nothing was applied.
        """
        optimizer.reduce()
        both = group.sum_(torch.cat([self._vector, optimizer.facts()]))
        self._vector, self._facts = both[: self._size], both[self._size :]

    def give(self, optimizer: ShardedOptimizer, clip_norm: float) -> float:
        """Give the optimizer its gradient, divided by the weight and clipped; returns its norm before
        clipping.

        Raises:
            GradientError: it is not finite; the parameters are named.
        """
        optimizer.clip_norm = clip_norm
        optimizer.take(self._facts, divisor(self._task, self.weight))
        return optimizer.norm

    @property
    def weight(self) -> float:
        """Of the global batch; 0 where no sample could be used."""
        return self._scalar("weight")

    def loss(self) -> float:
        """Mean loss of the global batch; 0 where no sample could be used."""
        return self._scalar("loss") / self._scalar("weight") if self._scalar("weight") else 0.0

    def metrics(self) -> dict[str, float]:
        """The loss and the task's metrics, each divided by the weight."""
        weight = self._scalar("weight") or 1.0
        return {"loss": self.loss()} | {name: self._scalar(name) / weight for name in self._task.metrics}

    def counts(self) -> dict[str, float]:
        """The task's counts."""
        return {name: self._scalar(name) for name in self._task.counts}

    def stats(self) -> dict[str, Tensor]:
        """The task's stats, in their shapes, float64."""
        return split_stats(self._vector[len(self._names) :], self._stats)

    def _scalar(self, name: str) -> float:
        return float(self._vector[self._names.index(name)])


def divisor(task: Task, weight: float) -> float:
    """What a sum of gradients over samples of this weight is divided by."""
    return max(weight if task.reduction == "mean" else 1.0, torch.finfo(torch.float32).tiny)


def split_stats(flat: Tensor, zeros: dict[str, Tensor]) -> dict[str, Tensor]:
    """The task's stats by name from one vector, in the shapes of `zeros`."""
    parts = flat.split([tensor.numel() for tensor in zeros.values()])
    return {name: part.view_as(like) for (name, like), part in zip(zeros.items(), parts, strict=True)}
