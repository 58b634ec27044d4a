"""The only training loop. What is trained comes from a Task, who trains from the fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import msgspec
import numpy as np
import torch

from shoestring.base.clock import Clock
from shoestring.base.errors import ShoestringError
from shoestring.cluster.strategies import parse_strategy
from shoestring.control.agent import Agent
from shoestring.fleet import messages as m
from shoestring.fleet.names import number_of
from shoestring.fleet.seat import RoundOver, Seat
from shoestring.parallel.group import Group, PeerLostError, form
from shoestring.parallel.memory import give_back, out_of_memory
from shoestring.parallel.paro import GradientError
from shoestring.parallel.paro.optimizer import SharesWork
from shoestring.train.align import Alignment
from shoestring.train.config import TrainConfig
from shoestring.train.exchange import Sums
from shoestring.train.lateness import Lateness, TooLate
from shoestring.train.local import LocalSteps, TooLarge
from shoestring.train.passes import Passes
from shoestring.train.saving import write_part
from shoestring.train.schedules import factor
from shoestring.train.servers.borrowed import Borrowed
from shoestring.train.state import TrainState
from shoestring.train.task import LossOut, SampleIds, StepContext, Task
from shoestring.train.waits import Stopwatch


class TrainingError(ShoestringError):
    """The numbers went wrong: a loss or gradient is not finite."""


class Holder(Protocol):
    """Where a worker's state comes from."""

    state: TrainState

    def enter(self, group: Group, round_: m.Round) -> None:
        """Hold what a round begins with."""
        ...

    def leave(self) -> None:
        """The round is over."""
        ...


@dataclass
class Done:
    """What this worker has computed in a step: sums over samples, in passes; `size` of the newest one;
    `begun`: samples of the passes that it had begun when it was stopped."""

    sums: Sums
    samples: int = 0
    passes: int = 0
    size: int = 0
    begun: int = 0


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
        self._agent = Agent(config.micro_batch)
        self._lateness = Lateness(seat.lookout, config.compile)
        self._loss = torch.compile(task.loss) if config.compile else task.loss
        self._untold: tuple[int, m.StepReport | None] = (-1, None)
        self._update_s = 0.0
        self._holder: Holder
        self._act: Callable[[Group, m.Round, m.Order], m.StepReport]
        if config.sync == "servers":
            self._holder = self._borrowed = Borrowed(seat, task, config, device)
            self._act = self._visit
            return
        strategy = parse_strategy(config.sharding.strategy)
        self._holder = self._alignment = Alignment(seat, task, config, strategy, device, clock)
        self._act = self._step
        if config.sync == "edit":
            self._local = LocalSteps(
                seat, task, config, self._agent, self._alignment, self._contribute, locate, device, clock
            )
            self._act = self._stretch

    def run(self) -> str:
        """Train until the coordinator says stop; returns its reason."""
        problem, holder = "", self._holder
        while True:
            state = holder.state
            invitation = self._seat.join(state.step, problem, state.held(), self._config.micro_batch)
            if isinstance(invitation, m.Stop):
                return invitation.reason
            try:
                with self._group(invitation) as group:
                    with self._seat.phase("align"):
                        holder.enter(group, invitation)
                    return self._work(group, invitation)
            except (PeerLostError, RoundOver) as lost:
                problem = str(lost)
            finally:
                holder.leave()

    def _work(self, group: Group, round_: m.Round) -> str:
        while True:
            step, report = self._untold
            order = self._seat.next(
                round_.round_id, self._state.step, report if step == self._state.step else None
            )
            self._untold = (-1, None)
            if isinstance(order, m.Stop):
                return order.reason
            if isinstance(order, m.Save):
                self._save(group, round_, order)
                continue
            self._agent.take(order.micro_batch, order.passes, order.lr_factor)
            self._untold = (order.step, self._act(group, round_, order))

    @property
    def _state(self) -> TrainState:
        return self._holder.state

    def _step(self, group: Group, round_: m.Round, order: m.Order) -> m.StepReport:
        waited_s = self._alignment.waited_s
        watch = Stopwatch(self._device, self._clock)
        done = self._compute(round_, order)
        sums = done.sums
        watch.stop()
        waited_s = self._alignment.waited_s - waited_s
        if order.tell:
            # The update belongs to a step's work, and is still to come: it will take as long as the last one.
            own_s = watch.seconds() - waited_s + self._update_s
            self._seat.ready(round_.round_id, order.step, _own_work(done, own_s))
        computed_s = self._clock.now()
        with self._seat.phase("exchange"):
            sums.exchange(group, self._state.sharded)
        exchanged_s = self._clock.now()
        with self._seat.phase("update"):
            shown = self._update(group, sums, order)
        self._update_s = self._clock.now() - exchanged_s
        return msgspec.structs.replace(
            _own_work(done, watch.seconds() - waited_s + self._update_s),
            exchange_s=exchanged_s - computed_s + waited_s,
            memory_bytes=_memory_bytes(self._device),
            metrics=shown,
            counts=sums.counts(),
        )

    def _stretch(self, group: Group, round_: m.Round, order: m.Order) -> m.StepReport:
        """Local steps of its own, then one with all."""
        try:
            report = self._local.step(group, round_, order)
        except TooLarge as error:
            self._shrink(round_, order, error.samples, str(error))
        except GradientError as error:
            raise TrainingError(f"step {order.step}: {error.what}", error.todo) from error
        return msgspec.structs.replace(report, memory_bytes=_memory_bytes(self._device))

    def _visit(self, group: Group, round_: m.Round, order: m.Order) -> m.StepReport:
        """Parameters from the servers, a gradient for them."""
        began_s = self._clock.now()
        with self._seat.phase("exchange"):
            self._borrowed.read(order)
        read_s = self._clock.now() - began_s
        watch = Stopwatch(self._device, self._clock)
        done = self._compute(round_, order)
        watch.stop()
        began_s = self._clock.now()
        try:
            with self._seat.phase("exchange"):
                norm = self._borrowed.bring(order, done.sums)
        except GradientError as error:
            raise TrainingError(f"push {order.step}: {error.what}", error.todo) from error
        return m.StepReport(
            samples=done.samples, compute_s=watch.seconds(),
            exchange_s=read_s + self._clock.now() - began_s, memory_bytes=_memory_bytes(self._device),
            metrics=done.sums.metrics() | {"gradient_norm": norm}, counts=done.sums.counts(),
            passes=max(1, done.passes),
        )  # fmt: skip

    def _compute(self, round_: m.Round, order: m.Order) -> Done:
        """All passes of a step, or as many as the others have waited for.

        Raises:
            RoundOver: a pass does not fit into memory; the coordinator has been told.
        """
        engine = self._state.sharded.engine
        engine.clear_gradients()
        part = Passes(order, self._agent.micro_batch, self._locate, self._task.load)
        done = Done(Sums(self._task, self._state.model, self._device))
        # A pass with collectives in it cannot be left: there, everybody is waited for.
        may_be_late = bool(order.backups) and engine.strategy.name == "NNN"
        watched: AbstractContextManager[None] = nullcontext()
        if may_be_late:
            watched = self._lateness.watched(self._state.model, round_.round_id, order.step)
        late, too_large = False, ""
        with self._seat.phase("compute"):
            try:
                with watched:
                    self._run_passes(part, order, done)
            except TooLate:
                late = True
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                too_large = str(error)
        if too_large:
            self._shrink(round_, order, done.size, too_large)
        if part.failures:
            self._seat.failed(round_.round_id, order.step, tuple(part.failures.items()))
        return self._drop(round_, order, part, done) if late else done

    def _run_passes(self, part: Passes, order: m.Order, done: Done) -> None:
        engine = self._state.sharded.engine
        context = StepContext(order.step, order.progress, self._config.seed)
        for turn, item in enumerate(self._turns(part, order)):
            # What is exchanged once a step may leave while the last backward pass runs.
            engine.last = turn + 1 == self._turn_count(order)
            if item is None:
                engine.idle()
                continue
            self._lateness.check()
            ids, batch = item
            done.size = len(ids)
            done.sums.add(self._contribute(ids, batch, context))
            done.samples, done.passes = done.samples + len(ids), done.passes + 1

    def _drop(self, round_: m.Round, order: m.Order, part: Passes, done: Done) -> Done:
        """The others go on: give back what is not computed; all of it where half a pass is in the sums."""
        kept = part.begun - 1
        if not self._state.sharded.engine.drop_pass():
            kept, done = 0, Done(Sums(self._task, self._state.model, self._device))
        self._seat.give_back(round_.round_id, order.step, part.after(kept))
        done.begun, done.passes = part.count_of(part.begun), part.begun
        return done

    def _shrink(self, round_: m.Round, order: m.Order, size: int, error: str) -> NoReturn:
        """Leave the round, for one with smaller passes: gradients are half summed, and others may wait in a
        collective of the pass."""
        self._state.sharded.engine.abandon()
        give_back(self._device)
        if size <= 1:
            raise TrainingError(
                f"step {order.step}: a pass over a single sample does not fit into memory: {error}",
                "take a smaller model or shorter samples, activation checkpointing, or cut state "
                "(parallel.strategy)",
            )
        self._seat.out_of_memory(round_.round_id, order.step, size, error)
        raise RoundOver(f"out of memory in a pass of {size} samples")

    def _contribute(self, ids: SampleIds, batch: Any, context: StepContext) -> LossOut:
        self._state.sharded.engine.begin()  # the loss may use parameters without calling the model
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._config.autocast == "bf16"):
            out = self._loss(self._state.model, batch, ids, context)
        out.loss_sum.backward()
        return out

    def _update(self, group: Group, sums: Sums, order: m.Order) -> dict[str, float]:
        state, optimizer = self._state, self._state.sharded
        try:
            norm = sums.give(optimizer, self._config.clip_norm)
        except GradientError as error:
            raise TrainingError(f"step {order.step}: loss {sums.loss()}; {error.what}", error.todo) from error
        if not np.isfinite(sums.loss()):
            raise TrainingError(
                f"step {order.step}: loss {sums.loss()}, gradient norm {norm}; nothing was applied",
                "look at these samples, lower the learning rate, or set train.clip_norm",
            )
        rate = state.set_rate(self._agent.lr_factor * factor(order.progress, self._config.schedule))
        if isinstance(state.inner, SharesWork):
            # May meet a lost peer, so it comes before anything is changed.
            state.inner.prepare(group.rank, group.size, group.sum_)

        def update() -> None:
            if sums.weight:  # a step whose samples all failed has nothing to tell
                self._task.absorb(state.model, sums.stats())
            optimizer.update()

        self._alignment.commit(group, order.step, update)
        return sums.metrics() | {"learning_rate": rate, "gradient_norm": norm}

    # --- samples -------------------------------------------------------------------------

    def _turn_count(self, order: m.Order) -> int:
        """Micro-steps of this step: everybody's, where a micro-step has collectives in it."""
        samples = sum(stop - start for start, stop in order.ranges)
        return self._agent.passes_for(samples, self._state.sharded.engine.strategy.name != "NNN")

    def _turns(self, part: Passes, order: m.Order) -> Iterator[tuple[SampleIds, Any] | None]:
        """This worker's micro-batches, then None for those that only others have."""
        made = 0
        for item in part:
            yield item
            made += 1
        for _ in range(made, self._turn_count(order)):
            yield None

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
            self._device.type == "cuda" and self._loopback and _share_gpus(round_.members),
        )

    def _save(self, group: Group, round_: m.Round, order: m.Save) -> None:
        with self._seat.phase("save"):
            files, error = write_part(self._alignment.own_tensors(group.rank), order.directory, group.rank)
        self._seat.saved(round_.round_id, order.step, files, error)


def _own_work(done: Done, compute_s: float) -> m.StepReport:
    return m.StepReport(done.samples, compute_s, 0.0, passes=max(1, done.passes), begun=done.begun)


def _share_gpus(members: Sequence[str]) -> bool:
    """Whether two of these workers of one machine have a GPU in common; see `train.worker`."""
    gpus = torch.cuda.device_count()
    return len({number_of(name) % gpus for name in members}) < len(members)


def _memory_bytes(device: torch.device) -> int:
    """Peak memory of this process on its device; of the process itself on the CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with open("/proc/self/status", encoding="ascii") as status:
        lines: Iterator[str] = (line for line in status if line.startswith("VmHWM:"))
        return next((int(line.split()[1]) * 1024 for line in lines), 0)
