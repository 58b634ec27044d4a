"""A worker's side of parameter servers: parameters are read before each pass over the order's samples, the
gradient is brought back (source: ours, after Li et al., OSDI 2014)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from shoestring.cluster.strategies import parse_strategy
from shoestring.fleet import messages as m
from shoestring.fleet.seat import Seat
from shoestring.parallel.group import Group
from shoestring.parallel.lines import Line, connect
from shoestring.parallel.paro import GradientError
from shoestring.parallel.paro.exchange import Alone
from shoestring.parallel.paro.flat import Entry, Flat
from shoestring.parallel.paro.state import persistent_buffers
from shoestring.train.config import TrainConfig
from shoestring.train.exchange import Sums, divisor
from shoestring.train.servers import asks
from shoestring.train.servers.packing import packed_bytes, unpack
from shoestring.train.servers.server import answer, key_of
from shoestring.train.servers.tables import (
    BorrowedTables,
    split_rows,
    table_modules,
    take_out,
    with_all_parts,
)
from shoestring.train.state import DTYPES, TrainState
from shoestring.train.task import Task

ALONE = Group(0, 1)
WIRE = {"as_is": "fp32", "fp32": "fp32", "bf16": "bf16"}


class Parts:
    """What one server holds, in this worker's model.

    Args:
        places: parameter -> where it is.
        buffers: by name.
    """

    def __init__(
        self, line: Line, shard: asks.Shard, places: dict[str, tuple[Flat, Entry]], buffers: dict[str, Tensor]
    ) -> None:
        self.line = line
        self.rows = [(first, stop) for _, first, stop in shard.tables]
        self.names = [name for name, _, _ in shard.pieces]
        self._ranges = [
            (places[name][0], places[name][1].offset + start, places[name][1].offset + stop)
            for name, start, stop in shard.pieces
        ]
        self._targets = [flat.full[low:high] for flat, low, high in self._ranges]
        self._targets += [buffers[name] for name in shard.buffers]
        self._packed = torch.empty(packed_bytes(self._targets), dtype=torch.uint8)

    def fill(self) -> None:
        """Take in the parameters that the server sends."""
        answer(self.line, asks.Done)
        self.line.receive_into(self._packed)
        unpack(self._packed, self._targets)

    def gradient(self, summed: Callable[[Flat], Tensor], dtype: torch.dtype) -> Tensor:
        """This worker's gradient of them, [elements]."""
        parts = [summed(flat)[low:high].to("cpu", dtype) for flat, low, high in self._ranges]
        return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)


class Borrowed:
    """Takes the place of Alignment where servers hold the state.

    Attributes:
        state: this worker's copy of the parameters, without optimizer state; its `step` is the number of the
            last push.
    """

    def __init__(self, seat: Seat, task: Task, config: TrainConfig, device: torch.device) -> None:
        self._seat = seat
        self._task = task
        self._config = config
        self._servers: list[Parts] = []
        self._round_id = -1
        self.state = TrainState(task, device, config.seed, cut=True, updated=False)
        modules = table_modules(self.state.model)
        take_out(modules, self.state.inner)
        chosen = DTYPES[config.sharding.dtype] if config.sharding.dtype in DTYPES else None
        self._tables = BorrowedTables(modules, device, self._fetch, chosen)
        self.state.lay_out(
            parse_strategy("NNN"),
            Alone(),
            config.sharding.dtype,
            "as_is",
            with_all_parts(self.state.model, task),
        )

    def enter(self, group: Group, round_: m.Round) -> None:
        """Connect to the servers of a round.

        Raises:
            PeerLostError: one is not there.
            RoundOver: the round is.
        """
        engine = self.state.sharded.engine
        engine.abandon()
        self.state.step, self._round_id = -1, round_.round_id
        places = {e.name: (flat, e) for flat in engine.flats if flat.trainable for e in flat.entries}
        buffers = persistent_buffers(self.state.model)
        table = self._seat.kv(round_.round_id)
        for rank in range(len(round_.servers)):
            line = connect(table.get(key_of(rank)), self._config.exchange_timeout_s)
            line.send(asks.encode(asks.Hello()))
            self._servers.append(Parts(line, answer(line, asks.Shard), places, buffers))

    def leave(self) -> None:
        """Hang up."""
        for server in self._servers:
            server.line.close()
        self._servers.clear()

    def read(self, order: m.Order) -> None:
        """Parameters with these updates in them.

        Raises:
            PeerLostError: a server is gone.
        """
        self._tables.forget()
        ask = asks.encode(asks.Pull(self._round_id, order.updates))
        for server in self._servers:
            server.line.send(ask)
        for server in self._servers:
            server.fill()

    def bring(self, order: m.Order, sums: Sums) -> float:
        """This worker's summed gradient, to all servers; returns the norm of its mean. On return all have it.

        Raises:
            GradientError: it is not finite; the parameters are named, and no server got it.
            PeerLostError: a server is gone.
        """
        optimizer = self.state.sharded
        sums.exchange(ALONE, optimizer)
        rows = self._tables.gradients()
        used, square = optimizer.engine.gradients.used, float(optimizer.facts()[0])
        square += sum(one.square for one in rows)
        if not math.isfinite(square):
            sums.give(optimizer, 0.0)  # names them
            raise GradientError("the norm of the gradient is not finite", "lower the learning rate")
        dtype = WIRE[self._config.exchange_dtype]
        nothing = torch.empty(0, dtype=torch.float64)
        stats = torch.cat([nothing, *(one.reshape(-1).cpu() for one in sums.stats().values())])
        for server in self._servers:
            flags = bytes(name in used for name in server.names)
            own = split_rows(rows, server.rows)
            counts = tuple(len(one.ids) for one in own)
            push = asks.Push(self._round_id, order.step, sums.weight, square, flags, dtype, counts)
            gradient = server.gradient(optimizer.engine.summed, asks.DTYPES[dtype])
            numbers = [part for one in own for part in (one.ids, one.values)]
            server.line.send(asks.encode(push), gradient, stats, *numbers)
        for server in self._servers:
            answer(server.line, asks.Done)
        self.state.step = order.step
        optimizer.engine.clear_gradients()
        return math.sqrt(square) / divisor(self._task, sums.weight)

    def _fetch(self, table: int, ids: Tensor) -> Tensor:
        """Rows of a table, from the servers that hold them; int64 [n], ascending -> [n, dim]."""
        asked = []
        for server in self._servers:
            first, stop = server.rows[table]
            low, high = torch.searchsorted(ids, torch.tensor([first, stop])).tolist()
            if high > low:
                own = ids[low:high]
                server.line.send(asks.encode(asks.Fetch(self._round_id, table, len(own))), own)
                asked.append((server, low, high))
        values = torch.empty(len(ids), self._tables.dims[table])
        for server, low, high in asked:
            answer(server.line, asks.Done)
            server.line.receive_into(values[low:high])
        if sum(high - low for _, low, high in asked) != len(ids):
            raise IndexError(f"rows {ids.tolist()[:3]}... are not in {self._tables.names[table]}")
        return values
