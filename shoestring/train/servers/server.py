"""A parameter server: holds a shard, serves workers, applies what the coordinator has decided (source: ours,
after Li et al., OSDI 2014)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TypeVar

import msgspec
import torch

from shoestring.base.clock import Clock
from shoestring.base.errors import CheckpointError, ConfigError
from shoestring.cluster.strategies import Layout, parse_strategy
from shoestring.fleet import messages as m
from shoestring.fleet.seat import RoundOver, Seat
from shoestring.parallel import tensorfiles
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.lines import Line, Listener, connect
from shoestring.parallel.paro.exchange import Alone
from shoestring.parallel.paro.optimizer import SharesWork
from shoestring.train.config import TrainConfig
from shoestring.train.saving import Files, write_part
from shoestring.train.servers import asks
from shoestring.train.servers.shelf import Copy, Shelf
from shoestring.train.servers.tables import Rows, ServedTable, table_modules, take_out, with_all_parts
from shoestring.train.state import TrainState
from shoestring.train.task import Task

T = TypeVar("T")
Part = tuple[int, Files, str]
"""Of a checkpoint: its step, the files that were written, and what went wrong."""
CUT = parse_strategy("GGG")


class Place(Alone):
    """A rank among servers, which have nothing to exchange: workers compute."""

    def __init__(self, rank: int, size: int) -> None:
        self.layout = Layout((tuple(range(size)),))
        self.rank = rank


class Server:
    """One server's side of a training run.

    Args: as for Trainer.
    """

    def __init__(
        self, seat: Seat, task: Task, config: TrainConfig, device: torch.device, clock: Clock,
        poll_s: float, loopback: bool = True,
    ) -> None:  # fmt: skip
        self._seat = seat
        self._task = task
        self._config = config
        self._device = device
        self._clock = clock
        self._poll_s = poll_s
        self._loopback = loopback
        self._shelf: Shelf | None = None

    def run(self) -> str:
        """Serve until the coordinator says stop; returns its reason."""
        problem = ""
        while True:
            step, held = -1, None
            if self._shelf is not None:
                step, held = self._shelf.standing()
            invitation = self._seat.join(step, problem, held)
            if isinstance(invitation, m.Stop):
                return invitation.reason
            try:
                with self._seat.phase("restore"):
                    shelf = self._enter(invitation)
                with self._open(shelf, invitation):
                    return self._work(shelf, invitation)
            except (PeerLostError, RoundOver) as lost:
                if self._shelf is not None and self._shelf.error is not None:
                    raise self._shelf.error from lost
                problem = str(lost)

    # --- a round -------------------------------------------------------------------------------

    def _enter(self, round_: m.Round) -> Shelf:
        """Hold this rank's shard of the state that the round starts from."""
        fresh = round_.source_rank < 0
        if fresh or self._shelf is None:
            state, tables = self._new_state(round_)
            if round_.checkpoint:
                self._read(state, tables, round_)
            state.sharded.engine.publish()
            state.step = round_.step
            self._shelf = Shelf(state, tables, self._task, self._config, self._clock)
        self._shelf.state.round_id = round_.round_id
        self._shelf.begin(round_.round_id, fresh)
        return self._shelf

    def _new_state(self, round_: m.Round) -> tuple[TrainState, list[ServedTable]]:
        if self._shelf is not None:
            self._shelf.state.let_go()  # the new one needs the room
            self._shelf = None
        state = TrainState(self._task, self._device, self._config.seed, cut=True)
        place = Place(round_.rank, len(round_.members))
        if isinstance(state.inner, SharesWork) and place.layout.size > 1:
            raise ConfigError(
                f"{type(state.inner).__name__} divides its work over ranks that hold all gradients, and "
                "servers hold shards",
                "set fleet.servers.count=1, or take an elementwise optimizer such as AdamW",
            )
        tables = self._tables(state, place)
        whole = with_all_parts(state.model, self._task)
        state.lay_out(CUT, place, self._config.sharding.dtype, "as_is", whole)
        return state, tables

    def _tables(self, state: TrainState, place: Place) -> list[ServedTable]:
        modules = table_modules(state.model)
        wanted = take_out(modules, state.inner)
        if any(taken.values.is_meta for taken in wanted.values()):
            bring = self._task.parallel_layout(state.model).initial
            assert bring is not None  # or the model would have been built whole
            for name, value in bring(with_all_parts(state.model, self._task)):
                if name in wanted:
                    wanted[name] = replace(wanted[name], values=value)
        return [
            ServedTable(name, taken, type(state.inner), place.rank, place.layout.size, self._device)
            for name, taken in wanted.items()
        ]

    def _read(self, state: TrainState, tables: list[ServedTable], round_: m.Round) -> None:
        wanted = reduce(or_, [table.tensors() for table in tables], state.tensors())
        try:
            tensorfiles.read(wanted, Path(round_.checkpoint))
        except CheckpointError as error:
            self._seat.bad_checkpoint(round_.round_id, round_.checkpoint, error.what)
            raise RoundOver("the checkpoint cannot be restored") from error

    @contextmanager
    def _open(self, shelf: Shelf, round_: m.Round) -> Iterator[None]:
        """Listen, and let the others know where."""
        peers = Peers(round_, self._config.exchange_timeout_s)
        shelf.others = peers.square
        listener = Listener(self._loopback, lambda line: serve(line, shelf))
        try:
            table = self._seat.kv(round_.round_id)
            table.set(key_of(round_.rank), listener.address)
            peers.know({rank: table.get(key_of(rank)) for rank in range(len(round_.members))})
            yield
        finally:
            peers.close()
            listener.close()

    def _work(self, shelf: Shelf, round_: m.Round) -> str:
        """Look for news of the coordinator now and then: workers bring most of them."""
        written: list[Part] = []
        while True:
            if shelf.error is not None:
                raise shelf.error
            reply = self._seat.next_for_server(round_.round_id, shelf.state.step, self._report(shelf))
            if isinstance(reply, m.Stop):
                return reply.reason
            if reply.updates:
                with self._seat.phase("compute"):
                    shelf.advance(round_.round_id, reply.updates)
            written += [
                self._write(round_, copy) for copy in shelf.copies(0.0 if reply.updates else self._poll_s)
            ]
            # Others may write for longer: news are wanted meanwhile.
            written = [part for part in written if not self._seat.offer_saved(round_.round_id, *part)]

    def _report(self, shelf: Shelf) -> m.StepReport | None:
        work = shelf.work()
        return m.StepReport(work.updates, work.seconds, 0.0) if work.updates else None

    def _write(self, round_: m.Round, copy: Copy) -> Part:
        with self._seat.phase("save"):
            files, error = write_part(copy.tensors, copy.directory, round_.rank)
        return copy.step, files, error


class Peers:
    """The other servers, asked for their parts of a norm by whichever thread applies updates. The seat is the
    main thread's: it finds out where they are."""

    def __init__(self, round_: m.Round, timeout_s: float) -> None:
        self._round = round_
        self._addresses: dict[int, bytes] = {}
        self._known = threading.Event()
        self._over = False
        self._timeout_s = timeout_s
        self._lines: dict[int, Line] = {}

    def know(self, addresses: dict[int, bytes]) -> None:
        """Where servers are, by rank."""
        self._addresses = addresses
        self._known.set()

    def square(self, update: m.Update) -> float:
        """The sum of theirs, in the order of ranks.

        Raises:
            PeerLostError: one is gone.
        """
        if not self._known.wait(self._timeout_s) or self._over:
            raise PeerLostError("the other servers were not found")
        others = [rank for rank in range(len(self._round.members)) if rank != self._round.rank]
        try:
            for rank in others:
                if rank not in self._lines:
                    self._lines[rank] = connect(self._addresses[rank], self._timeout_s)
                self._lines[rank].send(asks.encode(asks.Square(self._round.round_id, update)))
            return sum(answer(self._lines[rank], asks.Value).value for rank in others)
        except PeerLostError:
            self._hang_up()  # an answer that comes late must not be taken for the next one
            raise

    def close(self) -> None:
        """Hang up; nobody is asked any more."""
        self._over = True
        self._hang_up()

    def _hang_up(self) -> None:
        for line in list(self._lines.values()):
            line.close()
        self._lines.clear()


def key_of(rank: int) -> str:
    """Under which a server's address stands in its round's table."""
    return f"server/{rank}"


def answer(line: Line, kind: type[T]) -> T:
    """The answer to what was asked last, without its payload.

    Raises:
        PeerLostError: it is not possible, or the other side is gone.
    """
    told = asks.decode(line.receive()[0])
    if isinstance(told, asks.No):
        raise PeerLostError(told.why)
    if not isinstance(told, kind):
        raise PeerLostError(f"a server answered {type(told).__name__}, not {kind.__name__}")
    return told


def serve(line: Line, shelf: Shelf) -> None:
    """Answer one connection until it ends."""
    while True:
        header, size_bytes = line.receive()
        try:
            ask = asks.decode(header)
            if isinstance(ask, asks.Push):
                _take(line, shelf, ask)
                line.send(asks.encode(asks.Done()))
            elif isinstance(ask, asks.Fetch):
                line.send(asks.encode(asks.Done()), _fetch(line, shelf, ask))
            elif size_bytes:
                raise PeerLostError(f"{size_bytes} bytes that nobody has asked for")
            elif isinstance(ask, asks.Pull):
                shelf.advance(ask.round_id, ask.updates)
                line.send(asks.encode(asks.Done()), shelf.parameters())
            elif isinstance(ask, asks.Square):
                shelf.check(ask.round_id)
                line.send(asks.encode(asks.Value(shelf.square(ask.update))))
            else:
                pieces = tuple((piece.name, piece.start, piece.stop) for piece in shelf.pieces)
                tables = tuple((table.name, table.first, table.stop) for table in shelf.tables)
                line.send(asks.encode(asks.Shard(pieces, tuple(shelf.buffers()), tables)))
        except (PeerLostError, msgspec.DecodeError) as error:
            line.send(asks.encode(asks.No(str(error))))
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the main thread ends this process by it
            shelf.fail(error)
            line.send(asks.encode(asks.No(str(error))))
            return


def _take(line: Line, shelf: Shelf, push: asks.Push) -> None:
    gradient = torch.empty(shelf.elements, dtype=asks.DTYPES[push.dtype])
    stats = torch.empty(shelf.stats_elements, dtype=torch.float64)
    rows = [
        Rows(torch.empty(count, dtype=torch.int64), torch.empty(count, table.dim))
        for count, table in zip(push.rows, shelf.tables, strict=True)
    ]
    line.receive_into(gradient, stats, *(part for one in rows for part in (one.ids, one.values)))
    shelf.take(push, gradient, stats, rows)


def _fetch(line: Line, shelf: Shelf, ask: asks.Fetch) -> torch.Tensor:
    ids = torch.empty(ask.count, dtype=torch.int64)
    line.receive_into(ids)
    return shelf.rows(ask.round_id, ask.table, ids)
