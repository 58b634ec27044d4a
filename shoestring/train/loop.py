"""The only training loop. What is trained comes from a Task, who trains from the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoestring.base.clock import Clock
from shoestring.base.config import Config
from shoestring.base.errors import CheckpointError, SampleError, ShoestringError
from shoestring.control.agent import Agent
from shoestring.fleet import messages as m
from shoestring.fleet.checkpoints import file_checksum
from shoestring.fleet.seat import RoundOver, Seat
from shoestring.parallel import tensorfiles
from shoestring.parallel.group import Group, PeerLostError, form
from shoestring.train.exchange import Sums
from shoestring.train.schedules import ScheduleConfig, factor
from shoestring.train.state import TrainState
from shoestring.train.task import LossOut, SampleIds, SharesWork, StepContext, Task


class TrainConfig(Config):
    """Settings of the loop.

    Attributes:
        seed: of initialisation, order of the data, and every random choice of a step.
        micro_batch: samples that one forward and backward pass takes; more are accumulated.
        clip_norm: bound on the global gradient norm; 0: none.
        schedule: of the learning rate.
        autocast: `bf16` runs the task's loss under autocast; `off` leaves precision to the model.
        compile: run the task's loss through torch.compile; on a CPU that needs a C++ compiler.
        exchange_dtype: what gradients are summed in over the network.
        exchange_timeout_s: bound on one collective.
        threads: compute threads of a worker; 0: the machine's cores divided by the workers.
    """

    seed: int = 0
    micro_batch: int = 16
    clip_norm: float = 1.0
    schedule: ScheduleConfig = ScheduleConfig()
    autocast: str = "off"
    compile: bool = False
    exchange_dtype: str = "fp32"
    exchange_timeout_s: float = 600.0
    threads: int = 0


class TrainingError(ShoestringError):
    """The numbers went wrong: a loss or gradient is not finite."""


class Trainer:
    """One worker's side of a training run.

    Args:
        seat: the seat in the fleet.
        task: what is trained.
        config: settings of the loop.
        locate: positions of the ledger -> sample ids, both int64 [n].
        device: where the model lives.
        loopback: whether all workers are on this machine.
    """

    def __init__(
        self,
        seat: Seat,
        task: Task,
        config: TrainConfig,
        locate: Callable[[int, int], SampleIds],
        device: torch.device,
        clock: Clock,
        loopback: bool = True,
    ) -> None:
        self._seat = seat
        self._task = task
        self._config = config
        self._locate = locate
        self._device = device
        self._clock = clock
        self._loopback = loopback
        self._lr_scale = 1.0
        self._agent = Agent({"adjust_lr": self._adjust_lr})
        self._loss = torch.compile(task.loss) if config.compile else task.loss
        self._state = self._fresh_state()

    def run(self) -> str:
        """Train until the coordinator says stop; returns its reason."""
        problem = ""
        while True:
            invitation = self._seat.join(self._state.step, problem)
            if isinstance(invitation, m.Stop):
                return invitation.reason
            if self._state.step > invitation.step:
                # The fleet goes on from an older state: this one must never be offered again.
                self._state.step, self._touched = -1, True
            try:
                with self._group(invitation) as group:
                    with self._seat.phase("align"):
                        self._align(group, invitation)
                    return self._work(group, invitation)
            except (PeerLostError, RoundOver) as lost:
                problem = str(lost)

    def _work(self, group: Group, round_: m.Round) -> str:
        report = None
        while True:
            order = self._seat.next(round_.round_id, self._state.step, report)
            if isinstance(order, m.Stop):
                return order.reason
            if isinstance(order, m.Save):
                self._save(group, round_, order)
                report = None
                continue
            self._agent.apply(order.actions)
            report = self._step(group, round_, order)

    def _step(self, group: Group, round_: m.Round, order: m.Order) -> m.StepReport:
        began_s = self._clock.now()
        context = StepContext(order.step, order.progress, self._config.seed)
        sums = Sums(self._task, self._state)
        used = 0
        with self._seat.phase("compute"):
            for ids, batch in self._batches(round_, order):
                sums.add(self._contribute(ids, batch, context))
                used += len(ids)
        own_s = self._clock.now() - began_s
        with self._seat.phase("exchange"):
            sums.exchange(group, self._config.exchange_dtype)
        exchanged_s = self._clock.now()
        with self._seat.phase("update"):
            shown = self._update(group, sums, order)
        update_s = self._clock.now() - exchanged_s
        return m.StepReport(
            samples=used,
            compute_s=own_s + update_s,
            exchange_s=exchanged_s - began_s - own_s,
            memory_bytes=_memory_bytes(self._device),
            metrics=shown,
            counts=sums.counts(),
        )

    def _contribute(self, ids: SampleIds, batch: Any, context: StepContext) -> LossOut:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.autocast == "bf16"):
            out = self._loss(self._state.model, batch, ids, context)
        out.loss_sum.backward()
        return out

    def _update(self, group: Group, sums: Sums, order: m.Order) -> dict[str, float]:
        norm = sums.apply_weight(self._config.clip_norm)
        if not (np.isfinite(norm) and np.isfinite(sums.loss())):
            raise TrainingError(
                f"step {order.step}: loss {sums.loss()}, gradient norm {norm}; nothing was applied",
                "look at these samples, lower the learning rate, or set train.clip_norm",
            )
        rate = self._state.set_rate(self._lr_scale * factor(order.progress, self._config.schedule))
        if isinstance(self._state.optimizer, SharesWork):
            # May meet a lost peer, so it comes before anything is changed.
            self._state.optimizer.prepare(group.rank, group.size, group.sum_)
        self._task.absorb(self._state.model, sums.stats())
        self._touched = True
        self._state.step = -1  # half an update is nothing to build on
        self._state.optimizer.step()
        self._state.step = order.step
        return sums.metrics() | {"learning_rate": rate, "gradient_norm": norm}

    # --- samples -------------------------------------------------------------------------

    def _batches(self, round_: m.Round, order: m.Order) -> Iterator[tuple[SampleIds, Any]]:
        """This worker's micro-batches; what cannot be read is left out and reported, before any exchange."""
        if not order.ranges:
            return
        ids = np.concatenate([self._locate(start, stop - start) for start, stop in order.ranges])
        at = np.concatenate([np.arange(start, stop) for start, stop in order.ranges])
        failures: dict[int, str] = {}
        for first in range(0, len(ids), self._config.micro_batch):
            micro = ids[first : first + self._config.micro_batch]
            try:
                yield micro, self._task.load(micro)
            except SampleError as error:
                here = at[first : first + self._config.micro_batch]
                bad = np.isin(micro, list(error.failures))
                failures |= {
                    int(p): error.failures[int(i)] for p, i in zip(here[bad], micro[bad], strict=True)
                }
                if not bad.all():
                    yield micro[~bad], self._task.load(micro[~bad])
        if failures:
            self._seat.failed(round_.round_id, order.step, tuple(failures.items()))

    # --- state ---------------------------------------------------------------------------

    def _group(self, round_: m.Round) -> Any:
        table = self._seat.kv(round_.round_id)
        return form(
            table,
            round_.rank,
            len(round_.members),
            self._device,
            self._config.exchange_timeout_s,
            self._loopback,
        )

    def _align(self, group: Group, round_: m.Round) -> None:
        """Give every member of the round the same state."""
        state = self._state
        if round_.source_rank < 0:
            state.step = -1
            self._restore(round_)
            return
        if group.rank == round_.source_rank and state.step != round_.step:
            raise RoundOver("asked for a state that this worker does not hold")
        behind = torch.tensor([float(state.step != round_.step)])
        if float(group.sum_(behind.to(self._device))) > 0:
            if state.step != round_.step:
                state.step, self._touched = -1, True
            group.copy_from_(round_.source_rank, state.tensors().values())
        state.step = round_.step

    def _fresh_state(self) -> TrainState:
        self._touched = False
        return TrainState(self._task, self._device, self._config.seed)

    def _restore(self, round_: m.Round) -> None:
        if not round_.checkpoint:
            if self._touched:
                self._state = self._fresh_state()
            self._state.step = 0
            return
        with self._seat.phase("restore"):
            try:
                self._touched = True
                tensorfiles.read(self._state.tensors(), Path(round_.checkpoint))
            except CheckpointError as error:
                self._seat.bad_checkpoint(round_.round_id, round_.checkpoint, error.what)
                raise RoundOver("the checkpoint cannot be restored") from error
        self._state.step = round_.step

    def _save(self, group: Group, round_: m.Round, order: m.Save) -> None:
        files: dict[str, tuple[int, str]] = {}
        error = ""
        with self._seat.phase("save"):
            try:
                written = tensorfiles.write(
                    self._state.tensors(), Path(order.directory), group.rank, group.size
                )
                files = {path.name: file_checksum(path) for path in written}
            except CheckpointError as problem:
                error = problem.what
        self._seat.saved(round_.round_id, order.step, files, error)

    def _adjust_lr(self, action: Any) -> None:
        self._lr_scale = float(action["factor"])


def _memory_bytes(device: torch.device) -> int:
    """Peak memory of this process on its device; of the process itself on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with open("/proc/self/status", encoding="ascii") as status:
        lines: Iterator[str] = (line for line in status if line.startswith("VmHWM:"))
        return next((int(line.split()[1]) * 1024 for line in lines), 0)
