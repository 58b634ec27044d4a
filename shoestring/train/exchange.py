"""The sums of one step: gathered over micro-batches, exchanged once over workers (source: ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.parallel.group import Group
from shoestring.train.state import TrainState
from shoestring.train.task import LossOut, Task


class Sums:
    """Gradient, loss, weight, metrics, counts and stats of one step, as sums over samples.

    Exchanged in two collectives: the gradient, and all else in one small float64 vector, so that
    counts stay exact. Layout of that vector: loss, weight, metrics, counts, stats.
    """

    def __init__(self, task: Task, state: TrainState) -> None:
        self._task = task
        self._state = state
        self._stats = task.stats(state.model)
        self._names = ["loss", "weight", *task.metrics, *task.counts]
        device = state.gradient.device
        self._vector = torch.zeros(
            len(self._names) + sum(tensor.numel() for tensor in self._stats.values()),
            dtype=torch.float64,
            device=device,
        )
        state.gradient.zero_()

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

    def exchange(self, group: Group, dtype: str) -> None:
        """Sum over the members of the round; on return all hold the same numbers.

        Raises:
            PeerLostError: a member is gone; nothing was applied.
        """
        if group.size == 1:
            return
        if dtype == "bf16":
            small = self._state.gradient.to(torch.bfloat16)
            self._state.gradient.copy_(group.sum_(small))
        else:
            group.sum_(self._state.gradient)
        group.sum_(self._vector)

    def apply_weight(self, clip_norm: float) -> float:
        """Divide the gradient by the weight and clip it; returns its norm before clipping."""
        gradient = self._state.gradient
        if self._task.reduction == "mean":
            gradient.div_(max(self._scalar("weight"), torch.finfo(torch.float32).tiny))
        norm = float(torch.linalg.vector_norm(gradient))
        if clip_norm and norm > clip_norm:
            gradient.mul_(clip_norm / norm)
        return norm

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
        found, offset = {}, len(self._names)
        for name, zeros in self._stats.items():
            found[name] = self._vector[offset : offset + zeros.numel()].view_as(zeros)
            offset += zeros.numel()
        return found

    def _scalar(self, name: str) -> float:
        return float(self._vector[self._names.index(name)])
