"""Gives every member of a round the same state, cut for the round's ranks; and applies steps so that a lost
peer leaves a state that others can tell (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from shoestring.base.clock import Clock
from shoestring.base.errors import CheckpointError
from shoestring.cluster.strategies import Layout, Strategy, fitted
from shoestring.fleet import messages as m
from shoestring.fleet.seat import RoundOver, Seat
from shoestring.parallel import tensorfiles
from shoestring.parallel.group import Group
from shoestring.parallel.paro.exchange import Alone
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.paro.plain import PlainExchange
from shoestring.parallel.paro.recut import Recut
from shoestring.parallel.paro.state import persistent_buffers
from shoestring.train.config import TrainConfig
from shoestring.train.state import TrainState, holdings_of
from shoestring.train.task import Task
from shoestring.train.waits import TimedExchange

Line = Alone | TimedExchange


class Alignment:
    """Owns the state of one worker.

    Args:
        strategy: what is wanted; a round whose groups are uneven gets the nearest that its ranks can do.

    Attributes:
        state: model and optimizer.
    """

    def __init__(
        self,
        seat: Seat,
        task: Task,
        config: TrainConfig,
        strategy: Strategy,
        device: torch.device,
        clock: Clock,
    ) -> None:
        self._seat = seat
        self._task = task
        self._config = config
        self._strategy = strategy
        self._device = device
        self._clock = clock
        self._exchange: Line | None = None
        self._finish: Callable[[], None] | None = None
        self.state = self._fresh()

    @property
    def waited_s(self) -> float:
        """Seconds that this worker has waited for collectives of the round that it is in."""
        return self._exchange.waited_s if isinstance(self._exchange, TimedExchange) else 0.0

    # --- entering and leaving a round ------------------------------------------------------

    def enter(self, group: Group, round_: m.Round) -> None:
        """Hold the state that the round starts from, cut for its ranks.

        Raises:
            RoundOver: it cannot be had.
            PeerLostError: a member is gone.
        """
        began_s = self._clock.now()
        state = self.state
        if state.step != round_.step and state.ready == round_.step and self._finish is not None:
            self._finish()  # all had agreed to this step, and some member has applied it
        elif state.step > round_.step:
            self._forget()  # the fleet goes on from an older state: this one must never be offered again
        state.ready, self._finish = -1, None
        if state.laid_out:
            state.sharded.engine.abandon()
        strategy, exchange = self._connect(group, round_)
        if round_.source_rank < 0:
            state.step = -1
            self._restore(round_, strategy, exchange)
        elif round_.held:
            self._gather_up(group, round_, strategy, exchange, began_s)
        else:
            self._copy_whole(group, round_, strategy, exchange)
        self.state.step, self.state.round_id = round_.step, round_.round_id

    def leave(self) -> None:
        """Close connections; the state stays."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None

    def commit(self, group: Group, step: int, update: Callable[[], None]) -> None:
        """Apply a step whose gradient every member has.

        Where shards differ, nobody applies before all have said that they can: whoever is asked later either
        has applied the step or can do so alone.

        Raises:
            PeerLostError: a member is gone; `state.step` and `state.ready` say what is held.
        """
        state = self.state

        def finish() -> None:
            state.step = -1  # half an update is nothing to build on
            self._touched = True
            update()
            state.step, state.ready = step, -1

        if state.sharded.engine.strategy.states != "N":
            self._finish, state.ready = finish, step
            float(group.sum_(torch.zeros(1, device=self._device)))  # to be waited for, on a GPU too
        finish()
        self._finish = None
        state.sharded.engine.publish()

    def own_tensors(self, rank: int) -> dict[str, torch.Tensor]:
        """What of the state this member of the round writes into a checkpoint."""
        if self._config.sync == "edit":  # all hold all of it, in optimizer states of their own
            return self.state.tensors() if rank == 0 else {}
        return self.state.own_tensors()

    # --- where state comes from -------------------------------------------------------------

    def _connect(self, group: Group, round_: m.Round) -> tuple[Strategy, Line]:
        names = self._config.sharding.groups
        labels = [names[member] if member in names else "" for member in round_.members]
        strategy, layout = fitted(self._strategy, labels)
        self.leave()
        if group.size == 1:
            self._exchange = Alone()
        else:
            # One group has no slow link: it is spared connections of its own.
            plain = strategy.name == "NNN" and len(set(labels)) == 1
            line = PlainExchange(layout, group.rank) if plain else self._rings(group, strategy, layout)
            self._exchange = TimedExchange(line, self._clock)
        # Local steps are nobody else's: the optimizer sees one rank, the line is for the outer step.
        return strategy, Alone() if self._config.sync == "edit" else self._exchange

    @property
    def line(self) -> Line:
        """The exchange with the other members of the round."""
        assert self._exchange is not None
        return self._exchange

    def _rings(self, group: Group, strategy: Strategy, layout: Layout) -> RingExchange:
        return RingExchange(
            layout,
            group.rank,
            group.store,
            device=self._device,
            timeout_s=self._config.exchange_timeout_s,
            strategy=strategy,
        )

    def _lay_out(self, strategy: Strategy, exchange: Line) -> None:
        self.state.lay_out(strategy, exchange, self._config.sharding.dtype, self._config.exchange_dtype)
        if self._config.sync == "edit":
            self.state.with_outer()

    def _restore(self, round_: m.Round, strategy: Strategy, exchange: Line) -> None:
        if self._touched or (self.state.laid_out and not self.state.fits(strategy, exchange)):
            self.state.let_go()  # the new one needs the room
            self.state = self._fresh()
        if not self.state.laid_out:
            self._lay_out(strategy, exchange)
        engine = self.state.sharded.engine
        engine.rewire(exchange, strategy)
        if round_.checkpoint:
            with self._seat.phase("restore"):
                self._touched = True
                self._read(self.state.tensors(), round_)
        engine.publish()

    def _copy_whole(
        self,
        group: Group,
        round_: m.Round,
        strategy: Strategy,
        exchange: Line,
    ) -> None:
        state = self.state
        if group.rank == round_.source_rank and state.step != round_.step:
            raise RoundOver("asked for a state that this worker does not hold")
        if not state.laid_out:
            self._lay_out(strategy, exchange)
        state.sharded.engine.rewire(exchange, strategy)
        behind = torch.tensor([float(state.step != round_.step)])
        if float(group.sum_(behind.to(self._device))) > 0:
            if state.step != round_.step:
                self._forget()
            group.copy_from_(round_.source_rank, state.tensors().values())

    def _gather_up(
        self,
        group: Group,
        round_: m.Round,
        strategy: Strategy,
        exchange: Line,
        began_s: float,
    ) -> None:
        """Shards from whoever holds them."""
        state = self.state
        mine = round_.held[group.rank]
        if mine is not None and state.step != round_.step:
            raise RoundOver("asked for shards that this worker does not hold")
        if mine is None:
            self._forget()
        if not state.laid_out:
            self._lay_out(strategy, exchange)
        state.step, self._touched = -1, True  # until all is there
        done = state.lay_out_again(strategy, exchange, holdings_of(round_.held, round_.step)) or Recut()
        if done.missing and round_.checkpoint:
            self._read(done.missing, round_)
        group.copy_from_(round_.source_rank, persistent_buffers(state.model).values())
        engine = state.sharded.engine
        engine.publish()
        engine.settle_parameters()
        disk_bytes = sum(part.numel() * part.element_size() for part in done.missing.values())
        self._seat.recovered(
            round_.round_id, self._clock.now() - began_s, done.own_bytes, done.peer_bytes, done.rounded_bytes,
            disk_bytes if round_.checkpoint else 0,
        )  # fmt: skip

    def _read(self, tensors: dict[str, torch.Tensor], round_: m.Round) -> None:
        try:
            tensorfiles.read(tensors, Path(round_.checkpoint))
        except CheckpointError as error:
            self._seat.bad_checkpoint(round_.round_id, round_.checkpoint, error.what)
            raise RoundOver("the checkpoint cannot be restored") from error

    def _forget(self) -> None:
        """What is held is of no use any more, and must not be offered."""
        self.state.step = self.state.ready = -1
        self._touched = True

    def _fresh(self) -> TrainState:
        self._touched = False
        return TrainState(self._task, self._device, self._config.seed, cut=self._strategy.name != "NNN")
