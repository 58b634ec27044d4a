"""Cuts a sharded state anew for other ranks, groups or letters, from what living ranks hold (source: ours).

Masters and moments come from whoever has them. Masters that nobody has any more are made from parameters,
which other groups may still hold whole: exact where parameters are fp32, rounded where they are bf16.
Moments that nobody has are the caller's to restore: `Recut.missing` names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, Strategy
from shoestring.parallel.group import peer_errors
from shoestring.parallel.paro.exchange import Exchange
from shoestring.parallel.paro.flat import Flat, Piece
from shoestring.parallel.paro.moves import Move, Range, cut_shard, overlap, plan_moves
from shoestring.parallel.paro.optimizer import ShardedOptimizer, tell
from shoestring.parallel.paro.pieces import PieceTensor


@dataclass(frozen=True)
class Holding:
    """What a rank brings: shards of a layout that is over. `synced`: its parameters are of the wanted step,
    too."""

    strategy: Strategy
    layout: Layout
    rank: int
    synced: bool


@dataclass
class Recut:
    """What happened.

    Attributes:
        own_bytes, peer_bytes: of masters and moments that this rank had, or got from others.
        rounded_bytes: of masters made from parameters.
        missing: name of a checkpoint tensor -> the piece that nobody had, to be filled in place.
    """

    own_bytes: int = 0
    peer_bytes: int = 0
    rounded_bytes: int = 0
    missing: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def recut(
    optimizer: ShardedOptimizer, strategy: Strategy, exchange: Exchange, holdings: Sequence[Holding | None]
) -> Recut:
    """Give this rank its shards by `strategy` and `exchange.layout`; all ranks of the default process group
    call it.

    Afterwards fill `missing`, then `Engine.publish`.

    Args:
        optimizer: of any layout; changed in place. Its values count only where `holdings` says so.
        holdings: by new rank; None: this rank brings nothing.

    Raises:
        PeerLostError: a peer is gone; the state here is void then.
    """
    engine = optimizer.engine
    result = Recut()
    counts = _counts(optimizer, holdings[exchange.rank] is not None, exchange.layout.size)
    pieces: dict[int, list[Piece]] = {}
    for piece in optimizer.pieces:
        pieces.setdefault(id(piece.flat), []).append(piece)
    for unit in engine.units:
        for index, old in enumerate(unit.flats):
            new = Flat(
                strategy, exchange.layout, exchange.rank, old.dtype, old.gradient_dtype, old.wire_dtype,
                old.trainable, old.device, old.entries,
            )  # fmt: skip
            new.allocate()
            if old.trainable:
                _move_states(old, new, sorted(old.moments), exchange, holdings, result)
            else:
                _move_frozen(old, new, exchange, holdings)
            for entry in new.entries:
                entry.parameter.grad = None
                entry.parameter.data = new.full[entry.offset : entry.end].view(entry.shape)
            new.free()
            unit.flats[index] = new
            _let_go(optimizer, old, pieces[id(old)] if id(old) in pieces else [])
    engine.rewire(exchange, strategy)
    optimizer.divide_by = float(exchange.layout.size)
    _rename(optimizer, engine.new_pieces(), counts)
    return result


def _let_go(optimizer: ShardedOptimizer, old: Flat, pieces: list[Piece]) -> None:
    """Free a flat that was cut anew, so that only one is there twice at a time; names and keys stay."""
    for piece in pieces:
        state = optimizer.inner.state[piece.master] if piece.master in optimizer.inner.state else {}
        for key in old.moments:
            if key in state:
                state[key] = state[key].new_empty(0)
        piece.let_go()
    old.let_go()


def _move_states(
    old: Flat,
    new: Flat,
    keys: list[str],
    exchange: Exchange,
    holdings: Sequence[Holding | None],
    result: Recut,
) -> None:
    wanted = _wanted(new, new.strategy.states, exchange.layout)
    offers = [None if h is None else _held(old, h, h.strategy.states) for h in holdings]
    moves, missing = plan_moves(wanted, offers, exchange.layout)
    base, held_from = new.range(new.strategy.states)[0], old.range(old.strategy.states)[0]
    own = holdings[exchange.rank] is not None
    pairs = [(old.masters, new.masters)]
    for key in keys:
        source = old.moments[key] if key in old.moments else torch.zeros_like(old.masters)
        new.moments[key] = torch.zeros(new.masters.numel(), dtype=source.dtype, device=new.device)
        pairs.append((source, new.moments[key]))
    for source, target in pairs:
        _carry(moves, exchange.rank, source if own else None, held_from, target, base)
        for move in moves:
            if move.target == exchange.rank:
                size = (move.stop - move.start) * target.element_size()
                result.own_bytes += size if move.source == exchange.rank else 0
                result.peer_bytes += size if move.source != exchange.rank else 0
    if missing:
        _bridge(old, new, exchange, holdings, missing, result)
        for start, stop in missing[exchange.rank] if exchange.rank in missing else ():
            result.missing |= _pieces_of_range(new, keys, start, stop)


def _bridge(
    old: Flat, new: Flat, exchange: Exchange, holdings: Sequence[Holding | None],
    missing: dict[int, list[Range]], result: Recut,
) -> None:  # fmt: skip
    """Masters that are nowhere, from parameters that are."""
    offers = [None if h is None or not h.synced else _held(old, h, h.strategy.parameters) for h in holdings]
    base, held_from = new.range(new.strategy.states)[0], old.range(old.strategy.parameters)[0]
    for turn in range(max(len(ranges) for ranges in missing.values())):
        wanted = [
            missing[rank][turn] if rank in missing and turn < len(missing[rank]) else (0, 0)
            for rank in range(exchange.layout.size)
        ]
        moves, lost = plan_moves(wanted, offers, exchange.layout)
        if lost:
            raise ConfigError(
                f"parts of {old.entries[0].name} and its neighbours are with nobody", "restore a checkpoint"
            )
        rounded = torch.zeros(new.masters.numel(), dtype=old.dtype, device=new.device)
        own = holdings[exchange.rank] is not None
        _carry(moves, exchange.rank, old.parameters if own else None, held_from, rounded, base)
        start, stop = wanted[exchange.rank]
        new.masters[start - base : stop - base].copy_(rounded[start - base : stop - base])
        result.rounded_bytes += (stop - start) * 4


def _move_frozen(old: Flat, new: Flat, exchange: Exchange, holdings: Sequence[Holding | None]) -> None:
    wanted = _wanted(new, new.strategy.parameters, exchange.layout)
    offers = [None if h is None else _held(old, h, h.strategy.parameters) for h in holdings]
    moves, lost = plan_moves(wanted, offers, exchange.layout)
    if lost:
        raise ConfigError(
            f"frozen parameters near {old.entries[0].name} are with nobody", "restore a checkpoint"
        )
    own = holdings[exchange.rank] is not None
    base, held_from = new.range(new.strategy.parameters)[0], old.range(old.strategy.parameters)[0]
    _carry(moves, exchange.rank, old.parameters if own else None, held_from, new.parameters, base)


def _wanted(flat: Flat, letter: str, layout: Layout) -> list[Range]:
    return [cut_shard(flat.numel, flat.padded, layout, letter, rank) for rank in range(layout.size)]


def _held(flat: Flat, holding: Holding, letter: str) -> Range:
    """By the layout of the holder; the filling of that layout, not of the one that this rank's `flat` has."""
    there = Flat(
        holding.strategy, holding.layout, holding.rank, flat.dtype, flat.gradient_dtype, flat.wire_dtype,
        flat.trainable, flat.device, flat.entries,
    )  # fmt: skip
    return cut_shard(flat.numel, there.padded, holding.layout, letter, holding.rank)


def _carry(
    moves: list[Move], rank: int, source: Tensor | None, source_from: int, target: Tensor, target_from: int
) -> None:
    """Carry out moves of one tensor; `*_from` is the first element that the local tensors hold."""
    operations: list[dist.P2POp] = []
    for move in moves:
        inside = slice(move.start - target_from, move.stop - target_from)
        if move.source == rank == move.target:
            assert source is not None
            target[inside].copy_(source[move.start - source_from : move.stop - source_from])
        elif move.target == rank:
            operations.append(dist.P2POp(dist.irecv, target[inside], move.source))
        elif move.source == rank:
            assert source is not None
            part = source[move.start - source_from : move.stop - source_from]
            operations.append(dist.P2POp(dist.isend, part, move.target))
    if operations:
        with peer_errors():
            for work in dist.batch_isend_irecv(operations):
                work.wait()


def _pieces_of_range(flat: Flat, keys: list[str], start: int, stop: int) -> dict[str, Tensor]:
    """Checkpoint names of the moments in elements [start, stop) of a flat, as pieces to be filled."""
    base, _ = flat.range(flat.strategy.states)
    found: dict[str, Tensor] = {}
    for entry in flat.entries:
        low, high = overlap((start, stop), (entry.offset, entry.end))
        if low < high:
            for key in keys:
                local = flat.moments[key][low - base : high - base]
                found[f"optim.state.{entry.name}.{key}"] = PieceTensor(local, entry.shape, low - entry.offset)
    return found


def _rename(optimizer: ShardedOptimizer, pieces: list[Piece], counts: dict[tuple[str, str], float]) -> None:
    """Put new pieces where the old ones were: in groups and state."""
    old = {piece.name: piece for piece in optimizer.pieces}
    new = {piece.name: piece for piece in pieces}
    by_id = {id(piece.master): name for name, piece in old.items()}
    for group in optimizer.inner.param_groups:
        group["params"] = [new[by_id[id(master)]].master for master in group["params"]]
    states = {name: optimizer.inner.state.pop(piece.master, {}) for name, piece in old.items()}
    for name, piece in new.items():
        view = slice(piece.offset, piece.offset + piece.stop - piece.start)
        made: dict[str, Any] = {}
        for key, value in states[name].items():
            if key in piece.flat.moments:
                made[key] = piece.flat.moments[key][view].view_as(piece.master)
            elif (name, key) in counts:
                made[key] = torch.full_like(value, counts[(name, key)])
            else:
                made[key] = value
        optimizer.inner.state[piece.master] = made
    optimizer.pieces = pieces
    tell(optimizer.inner, pieces, optimizer.engine)


def _counts(optimizer: ShardedOptimizer, known: bool, size: int) -> dict[tuple[str, str], float]:
    """(parameter, key) -> the optimizer's scalar, such as its steps, from ranks that hold part of it.

    Where nobody does any more, the largest of all: counts differ for parameters that went unused only.
    """
    named = {
        (piece.name, key): value if known and piece.start < piece.stop else torch.tensor(-1.0)
        for piece in optimizer.pieces
        for key, value in optimizer.inner.state.get(piece.master, {}).items()
        if isinstance(value, Tensor) and value.numel() == 1 and key not in piece.flat.moments
    }
    if not named:
        return {}
    device = optimizer.engine.device
    values = torch.tensor([float(value) for value in named.values()], dtype=torch.float64, device=device)
    if size > 1:
        with peer_errors():
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
    most: dict[str, float] = {}
    for (_, key), value in zip(named, values.tolist(), strict=True):
        most[key] = max(value, most[key]) if key in most else value
    return {
        (name, key): value if value >= 0 else most[key]
        for (name, key), value in zip(named, values.tolist(), strict=True)
    }
