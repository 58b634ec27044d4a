"""Local steps between synchronisations (EDiT and, by the clock, A-EDiT: arXiv 2412.07210; exactness is ours).

A step of the fleet is a stretch in which each worker updates its own copy with its own samples; then all take
one outer step. A stretch counts as a whole or not at all: whoever is cut off goes back to where it was
synchronised last, optimizer state included, and the stretch's samples go back to the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from shoestring.base.clock import Clock
from shoestring.control.agent import Agent
from shoestring.fleet import messages as m
from shoestring.fleet.seat import Seat
from shoestring.parallel.group import Group
from shoestring.parallel.memory import out_of_memory
from shoestring.parallel.paro.optimizer import SharesWork
from shoestring.train.align import Alignment
from shoestring.train.config import TrainConfig
from shoestring.train.exchange import Sums
from shoestring.train.outer import Surprise, layers_of, outer_step, weights_of
from shoestring.train.passes import Passes
from shoestring.train.schedules import factor
from shoestring.train.state import TrainState
from shoestring.train.task import LossOut, SampleIds, StepContext, Task
from shoestring.train.waits import Stopwatch

ALONE = Group(0, 1)
Contribute = Callable[[SampleIds, Any, StepContext], LossOut]


class TooLarge(Exception):
    """A pass of `samples` samples does not fit into memory; the state is as it was before the stretch."""

    def __init__(self, samples: int, error: str) -> None:
        super().__init__(error)
        self.samples = samples


class LocalSteps:
    """One worker's side of a stretch.

    Args:
        contribute: forward and backward pass of a micro-batch.
        others as for Trainer.
    """

    def __init__(
        self,
        seat: Seat,
        task: Task,
        config: TrainConfig,
        agent: Agent,
        alignment: Alignment,
        contribute: Contribute,
        locate: Callable[[int, int], SampleIds],
        device: torch.device,
        clock: Clock,
    ) -> None:
        self._seat = seat
        self._task = task
        self._config = config
        self._agent = agent
        self._alignment = alignment
        self._contribute = contribute
        self._locate = locate
        self._device = device
        self._clock = clock
        self._anchor: dict[str, Tensor] = {}
        self._anchor_step = -1
        self._surprise: Surprise | None = None
        self._rate = 0.0

    def step(self, group: Group, round_: m.Round, order: m.Order) -> m.StepReport:
        """Local steps until the order's samples or its time are used up, then one outer step with all.

        Raises:
            PeerLostError, RoundOver: the stretch does not count; the state is the one before it.
            TooLarge: as above.
            GradientError: a local gradient is not finite.
        """
        self._keep_anchor()
        try:
            watch = Stopwatch(self._device, self._clock)
            with self._seat.phase("compute"):
                part, total, local_steps, samples = self._stretch(order)
            watch.stop()
            if part.failures:
                self._seat.failed(round_.round_id, order.step, tuple(part.failures.items()))
            if left := part.after(part.begun):
                self._seat.give_back(round_.round_id, order.step, left)
            own_work = m.StepReport(samples, watch.seconds(), 0.0, passes=max(1, part.begun))
            if order.tell:
                self._seat.ready(round_.round_id, order.step, own_work)
            began_s = self._clock.now()
            with self._seat.phase("exchange"):
                shown = self._synchronise(group, order, total, local_steps, samples)
            exchange_s = self._clock.now() - began_s
        except BaseException:
            self._back_to_anchor()
            raise
        return msgspec.structs.replace(
            own_work, exchange_s=exchange_s, metrics=shown | {"learning_rate": self._rate},
            counts=total.counts(),
        )  # fmt: skip

    # --- local -------------------------------------------------------------------------------

    def _stretch(self, order: m.Order) -> tuple[Passes, Sums, int, int]:
        """Local steps: passes, their sums, how many steps, how many samples."""
        state = self._alignment.state
        self._rate = state.set_rate(self._agent.lr_factor * factor(order.progress, self._config.schedule))
        context = StepContext(order.step, order.progress, self._config.seed)
        passes_a_step = max(1, -(-self._config.edit.local_batch // self._agent.micro_batch))
        part = Passes(order, self._agent.micro_batch, self._locate, self._task.load)
        ends_s = self._clock.now() + order.window_s if order.window_s else math.inf
        total, sums = self._new_sums(), self._new_sums()
        local_steps = samples = taken = 0
        state.sharded.engine.clear_gradients()
        for ids, batch in part:
            try:
                sums.add(self._contribute(ids, batch, context))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                raise TooLarge(len(ids), str(error)) from error
            samples, taken = samples + len(ids), taken + 1
            over = self._clock.now() >= ends_s
            if taken == passes_a_step or over:
                self._update(sums)
                total.merge(sums)
                sums, taken, local_steps = self._new_sums(), 0, local_steps + 1
            if over:
                break
        if taken:
            self._update(sums)
            total.merge(sums)
            local_steps += 1
        return part, total, local_steps, samples

    def _update(self, sums: Sums) -> None:
        state = self._alignment.state
        sums.exchange(ALONE, state.sharded)
        sums.give(state.sharded, self._config.clip_norm)
        if isinstance(state.inner, SharesWork):
            state.inner.prepare(0, 1, lambda tensor: tensor)
        state.sharded.apply()

    def _new_sums(self) -> Sums:
        return Sums(self._task, self._alignment.state.model, self._device)

    # --- together ------------------------------------------------------------------------------

    def _synchronise(
        self, group: Group, order: m.Order, total: Sums, local_steps: int, samples: int
    ) -> dict[str, float]:
        state = self._alignment.state
        masters = _masters(state)
        layers = layers_of(state.model, list(masters), self._task.parallel_layout(state.model).units)
        if self._surprise is None:
            self._surprise = Surprise(len(layers), self._config.edit)
        moved = {
            layer: torch.cat([(self._anchor[f"model.{n}"] - masters[n]).reshape(-1) for n in names])
            for layer, names in layers.items()
        }
        norms = torch.stack([torch.linalg.vector_norm(one).double() for one in moved.values()]).cpu()
        norms = norms / math.sqrt(max(1, local_steps))
        flagged = self._surprise.unusual(norms) if samples else torch.ones(len(layers), dtype=torch.bool)
        own = torch.tensor([samples, local_steps], dtype=torch.float64)
        table = torch.zeros(group.size, 2 * len(layers) + 2, dtype=torch.float64)
        table[group.rank] = torch.cat([torch.where(flagged, 0.0, norms), flagged.double(), own])
        total.share(group)
        table = group.sum_(table.to(self._device)).cpu()
        count = len(layers)
        all_flagged, used = table[:, count : 2 * count] > 0, table[:, -2]
        weights = weights_of(table[:, :count], all_flagged, used, self._config.edit.temperature)
        # All layers are under way at once, in one order. None is applied before all are there: a stretch
        # counts as a whole or not at all.
        pending = []
        for place, (layer, change) in enumerate(moved.items()):
            weight = float(weights[group.rank, place])
            change = change.mul_(weight) if weight else change.zero_()  # what is not finite has weight 0
            moved[layer] = change
            pending.append(self._alignment.line.sum(change, "world"))
        for one in pending:
            one.wait()

        def update() -> None:
            if total.weight:
                self._task.absorb(state.model, total.stats())
            for layer, names in layers.items():
                outer_step(
                    {n: masters[n] for n in names}, {n: self._anchor[f"model.{n}"] for n in names},
                    {n: state.outer[n] for n in names}, moved[layer], self._config.edit,
                )  # fmt: skip

        self._alignment.commit(group, order.step, update)
        return total.metrics() | {
            "local_steps": float(table[:, -1].sum()),
            "layers_left_out": float(all_flagged[used > 0].sum()),
        }

    # --- the way back ----------------------------------------------------------------------------

    @torch.no_grad()
    def _keep_anchor(self) -> None:
        """Remember the whole state: it takes as much memory again."""
        self._anchor_step = self._alignment.state.step
        for name, tensor in self._alignment.state.tensors().items():
            kept = self._anchor[name] if name in self._anchor else None
            if kept is None or kept.shape != tensor.shape:
                self._anchor[name] = tensor.detach().clone()
            else:
                kept.copy_(tensor)

    @torch.no_grad()
    def _back_to_anchor(self) -> None:
        state = self._alignment.state
        if state.step != self._anchor_step:
            return  # applied, or half applied and marked so
        for name, tensor in state.tensors().items():
            tensor.copy_(self._anchor[name])
        state.sharded.engine.abandon()
        state.sharded.engine.publish()


def _masters(state: TrainState) -> dict[str, Tensor]:
    return {piece.name: piece.master.data for piece in state.sharded.pieces}
