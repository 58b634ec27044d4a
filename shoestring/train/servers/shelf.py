"""One server's shard: pushes that wait for their update, updates in their order, parameters as of the newest
(source: ours; docs/design/servers.md)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError
from shoestring.fleet.messages import Held, Update
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.paro.flat import Piece
from shoestring.parallel.paro.optimizer import SharesWork
from shoestring.parallel.paro.pieces import copy_of
from shoestring.parallel.paro.state import persistent_buffers
from shoestring.train.config import TrainConfig
from shoestring.train.exchange import divisor, split_stats
from shoestring.train.schedules import factor
from shoestring.train.servers.asks import Push
from shoestring.train.servers.packing import pack
from shoestring.train.servers.tables import Rows, ServedTable, merged
from shoestring.train.state import TrainState
from shoestring.train.task import Task

REMEMBERED = 1000
"""Updates whose norm others may still ask for."""
Squares = Callable[[Update], float]
"""The squared norm of the other servers' parts of an update's summed gradient."""


@dataclass
class Staged:
    """A push that is in no update yet: what was said of it, its gradient, and the task's stats."""

    push: Push
    gradient: Tensor
    stats: Tensor
    rows: list[Rows]


@dataclass
class Copy:
    """The shard as of an update, to be written."""

    step: int
    directory: str
    tensors: dict[str, Tensor]


@dataclass
class Work:
    """What this server itself has done since it was asked last: updates, and seconds spent on them."""

    updates: int = 0
    seconds: float = 0.0


@dataclass
class Sum:
    """Of the pushes of an update."""

    gradient: Tensor
    square: float
    weight: float
    used: list[bool]
    stats: Tensor
    rows: list[Rows]


class Turns:
    """A lock that goes round in the order of asking.

    A plain one goes to whoever asks at the right moment: threads that serve busy workers kept the one that
    speaks with the coordinator waiting for seconds, and so its reports and its news.
    """

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._given = self._turn = 0

    def __enter__(self) -> None:
        with self._moved:
            mine = self._given
            self._given += 1
            self._moved.wait_for(lambda: self._turn == mine)

    def __exit__(self, *_: object) -> None:
        with self._moved:
            self._turn += 1
            self._moved.notify_all()

    @property
    def waiting(self) -> int:
        """How many have asked and not got it yet."""
        with self._moved:
            return max(0, self._given - self._turn - 1)


class Shelf:
    """Any thread may call anything.

    Args:
        state: laid out for this server's rank; its `step` is the newest update in it.
        tables: this server's rows of them.

    Attributes:
        others: asks the other servers.
        error: why this process has to end.
    """

    def __init__(
        self,
        state: TrainState,
        tables: Sequence[ServedTable],
        task: Task,
        config: TrainConfig,
        clock: Clock,
    ) -> None:
        self.state = state
        self.tables = tables
        self.others: Squares = lambda _: 0.0
        self._task = task
        self._config = config
        self._clock = clock
        self._staged: dict[int, Staged] = {}
        self._squares: dict[int, float] = {}
        self._refused: set[int] = set()
        self._waiting = threading.Lock()  # of pushes; never held while others are asked
        self._applying = Turns()  # of the state
        self._news = threading.Event()
        self._to_save: list[Copy] = []
        self._asked = ""
        self._work = Work()
        self.round_id = -1
        self.error: BaseException | None = None

    @property
    def pieces(self) -> list[Piece]:
        """In the order of their numbers in a payload."""
        return self.state.sharded.pieces

    @property
    def elements(self) -> int:
        """Of all pieces together."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def stats_elements(self) -> int:
        """Of the task's stats."""
        return sum(tensor.numel() for tensor in self._task.stats(self.state.model).values())

    # --- rounds ----------------------------------------------------------------------------------

    def begin(self, round_id: int, fresh: bool) -> None:
        """A round begins; `fresh`: from another state, so that nothing that is there means anything. Else
        pushes of rounds before may still be in updates to come, and others ask for norms of updates that
        were."""
        with self._waiting:
            if fresh:
                self._staged.clear()
                self._squares.clear()
            self._refused.clear()
            self._to_save.clear()
            self._asked = ""
            self.round_id, self.error, self._work = round_id, None, Work()

    def check(self, round_id: int) -> None:
        """Raises PeerLostError where another round is in progress."""
        if round_id != self.round_id:
            raise PeerLostError(f"round {round_id} is over")

    # --- pushes ----------------------------------------------------------------------------------

    def take(self, push: Push, gradient: Tensor, stats: Tensor, rows: list[Rows]) -> None:
        """Keep a push until its update comes; one that is here already changes nothing.

        Args:
            gradient: [elements], on the CPU.
            rows: of each table.
        """
        with self._waiting:
            self.check(push.round_id)
            if push.number not in self._refused:
                self._staged.setdefault(push.number, Staged(push, gradient, stats, rows))

    def square(self, update: Update) -> float:
        """Squared norm of this server's part of an update's summed gradient."""
        with self._waiting:
            if update.number not in self._squares:
                self._squares[update.number] = self._sum(update).square
            return self._squares[update.number]

    def _sum(self, update: Update) -> Sum:
        missing = [number for number in update.pushes if number not in self._staged]
        if missing:
            raise FleetError(
                f"update {update.number} wants push {missing[0]}, which this server does not have",
                "report this; it is a mistake in shoestring",
            )
        parts = [self._staged[number] for number in update.pushes]
        total = parts[0].gradient.to(torch.float32, copy=True)
        for part in parts[1:]:
            total += part.gradient
        rows = [
            merged([(part.rows[number].ids, part.rows[number].values) for part in parts], table.dim)
            for number, table in enumerate(self.tables)
        ]
        square = float(torch.linalg.vector_norm(total).double().square())
        return Sum(
            total,
            square + sum(one.square for one in rows),
            math.fsum(part.push.weight for part in parts),
            [any(flags) for flags in zip(*(part.push.used for part in parts), strict=True)],
            torch.stack([part.stats for part in parts]).sum(0),
            rows,
        )

    # --- updates ---------------------------------------------------------------------------------

    def advance(self, round_id: int, updates: tuple[Update, ...]) -> None:
        """Apply what of these is new.

        Raises:
            PeerLostError: the round is over, or another server is gone; nothing is half applied.
        """
        with self._applying:
            self.check(round_id)
            for update in updates:
                if update.number == self.state.step and not update.pushes:
                    self._copy(update)
                if update.number <= self.state.step:
                    continue
                if update.number != self.state.step + 1:
                    raise PeerLostError(f"update {update.number} comes after {self.state.step}")
                try:
                    self._apply(update)
                except PeerLostError:
                    raise
                except Exception as error:
                    self.fail(error)
                    raise PeerLostError(f"update {update.number} failed: {error}") from error

    def _apply(self, update: Update) -> None:
        began_s = self._clock.now()
        with self._waiting:
            total = self._sum(update)
            self._squares[update.number] = total.square
            pushed = [self._staged[number].push for number in update.pushes]
        square, waited_s = pushed[0].square, 0.0
        if len(pushed) > 1:
            asked_s = self._clock.now()
            square = total.square + (self.others(update) if self._config.clip_norm else 0.0)
            waited_s = self._clock.now() - asked_s
        self.state.step = -1  # half an update is nothing to build on
        self._step(update, total, square)
        self.state.step = update.number
        with self._waiting:
            for number in (*update.pushes, *update.dropped):
                self._staged.pop(number, None)
            self._squares.pop(update.number - REMEMBERED, None)
            self._refused |= set(update.dropped)
            self._work.updates += 1
            self._work.seconds += self._clock.now() - began_s - waited_s
            if any(push.round_id == self.round_id for push in pushed):
                # No update to come has a push of an earlier round.
                for number in [n for n, one in self._staged.items() if one.push.round_id < self.round_id]:
                    del self._staged[number]
        self._copy(update)

    def _copy(self, update: Update) -> None:
        """Set the state aside, if it is to be saved as of now; once."""
        if not update.save or update.save == self._asked:
            return
        own = {name: copy_of(tensor) for name, tensor in self._own_tensors().items()}
        with self._waiting:
            self._asked = update.save
            self._to_save.append(Copy(update.number, update.save, own))
        self._news.set()

    def _own_tensors(self) -> dict[str, Tensor]:
        tables = [table.own_tensors() for table in self.tables]
        return reduce(or_, tables, self.state.own_tensors())

    @torch.no_grad()
    def _step(self, update: Update, total: Sum, square: float) -> None:
        state, optimizer = self.state, self.state.sharded
        rate = update.lr_factor * factor(update.progress, self._config.schedule)
        state.set_rate(rate)
        self._give(total)
        used = torch.tensor(total.used, dtype=torch.float64)
        optimizer.clip_norm = self._config.clip_norm
        optimizer.take(torch.cat([torch.tensor([square]).double(), used]), divisor(self._task, total.weight))
        if total.weight:  # an update whose samples all failed has nothing to tell
            self._absorb(total.stats)
        if isinstance(state.inner, SharesWork):
            state.inner.prepare(0, 1, lambda tensor: tensor)
        optimizer.apply()
        for table, rows in zip(self.tables, total.rows, strict=True):
            table.set_rate(rate)
            table.update(rows, optimizer.scale)

    def _give(self, total: Sum) -> None:
        """The summed gradient, from the order of pieces into the flats that they are of."""
        engine = self.state.sharded.engine
        shards = {id(flat): torch.zeros(flat.masters.numel()) for flat in engine.flats if flat.trainable}
        parts = total.gradient.split([piece.stop - piece.start for piece in self.pieces])
        for piece, part in zip(self.pieces, parts, strict=True):
            shards[id(piece.flat)][piece.offset : piece.offset + len(part)] = part
        for flat in engine.flats:
            if flat.trainable:
                engine.gradients.give(flat, shards[id(flat)].to(engine.device))

    def _absorb(self, stats: Tensor) -> None:
        zeros = self._task.stats(self.state.model)
        found = split_stats(stats, zeros)
        self._task.absorb(
            self.state.model, {name: value.to(zeros[name].device) for name, value in found.items()}
        )

    # --- what others see -------------------------------------------------------------------------

    def parameters(self) -> Tensor:
        """All pieces and buffers, as bytes."""
        with self._applying:
            parts = [
                piece.flat.parameters[piece.offset : piece.offset + piece.stop - piece.start]
                for piece in self.pieces
            ]
            return pack([*parts, *self.buffers().values()])

    def rows(self, round_id: int, table: int, ids: Tensor) -> Tensor:
        """Values of some rows, [n, dim]."""
        with self._applying:
            self.check(round_id)
            return self.tables[table].rows(ids)

    def buffers(self) -> dict[str, Tensor]:
        """Those that go with the parameters: equal on all servers, the first one gives them."""
        first = self.state.sharded.engine.exchange.rank == 0
        return persistent_buffers(self.state.model) if first else {}

    def work(self) -> Work:
        """What was done since the last call."""
        with self._waiting:
            done, self._work = self._work, Work()
        return done

    def standing(self) -> tuple[int, Held | None]:
        """The newest update in it, and the place of this shard; waits for one that is being applied."""
        with self._applying:
            return self.state.step, self.state.held()

    def fail(self, error: BaseException) -> None:
        """This process has to end."""
        self.error = self.error or error
        self._news.set()

    def copies(self, wait_s: float) -> list[Copy]:
        """Copies to be written; waits that long for one."""
        self._news.wait(wait_s)
        self._news.clear()
        with self._waiting:
            copies, self._to_save = self._to_save, []
        return copies
