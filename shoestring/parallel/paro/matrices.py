"""Whole matrices out of pieces, each at one rank, and back: for optimizers that work on matrices (source:
ours).

Muon needs a matrix whole. Shards are long and matrices short, so most matrices lie in one shard, and each
goes to the rank that holds most of it: only those that lie across the end of a shard travel, in part. Where
groups hold copies, each group works for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.cluster.strategies import Layout
from shoestring.parallel.group import peer_errors
from shoestring.parallel.paro.engine import Engine
from shoestring.parallel.paro.flat import Entry, Flat, Piece
from shoestring.parallel.paro.moves import Range, cut_shard, overlap


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of a parameter's flattened form, which `rank` holds, of a matrix that `owner`
    gets."""

    name: str
    matrix: int
    start: int
    stop: int
    rank: int
    owner: int


class Matrices:
    """Who gets which matrix.

    Args:
        engine: of the sharded model.
        names: parameters that are matrices, or batches of them [..., r, c].
    """

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        self._rank = engine.exchange.rank
        self._device = engine.device
        self.shapes: dict[str, torch.Size] = {}
        parts: list[Part] = []
        wanted, layout = set(names), engine.exchange.layout
        for flat in engine.flats:
            ranks = _working_together(engine, flat.strategy.states)
            for entry in flat.entries:
                if entry.name in wanted:
                    self.shapes[entry.name] = entry.shape
                    held = {rank: _held(flat, layout, rank, entry) for rank in ranks}
                    parts += _parts(entry.name, entry.shape, held)
        self._parts = parts
        self.owned = sorted({(part.name, part.matrix) for part in parts if part.owner == self._rank})

    def bring(self, pieces: Mapping[str, tuple[Piece, Tensor]], dtype: torch.dtype) -> list[Tensor]:
        """The matrices that this rank owns, in the order of `owned`, each [r, c].

        Args:
            pieces: name -> (piece, values [stop - start] in `dtype`).

        Raises:
            PeerLostError: a peer is gone.
        """
        whole = {key: torch.empty(self._size(key[0]), dtype=dtype, device=self._device) for key in self.owned}
        self._exchange(pieces, whole, to_owner=True)
        return [whole[key].view(self.shapes[key[0]][-2:]) for key in self.owned]

    def give_back(self, matrices: Sequence[Tensor], pieces: Mapping[str, tuple[Piece, Tensor]]) -> None:
        """Owned matrices into the values of whoever holds their parts.

        Args:
            matrices: in the order of `owned`.
            pieces: as in `bring`; their values are overwritten.

        Raises:
            PeerLostError: a peer is gone.
        """
        whole = {key: made.reshape(-1) for key, made in zip(self.owned, matrices, strict=True)}
        self._exchange(pieces, whole, to_owner=False)

    def _exchange(
        self, pieces: Mapping[str, tuple[Piece, Tensor]], whole: dict[tuple[str, int], Tensor], to_owner: bool
    ) -> None:
        operations: list[dist.P2POp] = []
        for part in self._parts:
            if self._rank not in (part.rank, part.owner):
                continue
            inside = _inside(part, self._size(part.name))
            key = (part.name, part.matrix)
            at_owner = whole[key][inside] if part.owner == self._rank else None
            here = _of_piece(pieces[part.name], part) if part.rank == self._rank else None
            source, target = (here, at_owner) if to_owner else (at_owner, here)
            if source is not None and target is not None:
                target.copy_(source)
            elif source is not None:
                other = part.owner if to_owner else part.rank
                operations.append(dist.P2POp(dist.isend, source.contiguous(), other))
            elif target is not None:
                other = part.rank if to_owner else part.owner
                operations.append(dist.P2POp(dist.irecv, target, other))
        if operations:
            with peer_errors():
                for work in dist.batch_isend_irecv(operations):
                    work.wait()

    def _size(self, name: str) -> int:
        return math.prod(self.shapes[name][-2:])


def _working_together(engine: Engine, letter: str) -> Sequence[int]:
    layout, rank = engine.exchange.layout, engine.exchange.rank
    if letter == "I":
        return layout.groups[layout.locate(rank)[0]]
    return range(layout.size) if letter == "G" else (rank,)


def _held(flat: Flat, layout: Layout, rank: int, entry: Entry) -> Range:
    """Elements of a parameter that a rank holds."""
    shard = cut_shard(flat.numel, flat.padded, layout, flat.strategy.states, rank)
    low, high = overlap(shard, (entry.offset, entry.end))
    return low - entry.offset, high - entry.offset


def _parts(name: str, shape: torch.Size, held: dict[int, Range]) -> list[Part]:
    size = math.prod(shape[-2:])
    found: list[Part] = []
    for matrix in range(shape.numel() // size):
        first, last = matrix * size, (matrix + 1) * size
        shared = {rank: overlap(part, (first, last)) for rank, part in held.items()}
        overlaps = {rank: part for rank, part in shared.items() if part[0] < part[1]}
        owner = max(overlaps, key=lambda rank, o=overlaps: (o[rank][1] - o[rank][0], -rank))  # type: ignore[misc]
        found += [Part(name, matrix, low, high, rank, owner) for rank, (low, high) in overlaps.items()]
    return found


def _inside(part: Part, size: int) -> slice:
    first = part.matrix * size
    return slice(part.start - first, part.stop - first)


def _of_piece(held: tuple[Piece, Tensor], part: Part) -> Tensor:
    piece, values = held
    return values[part.start - piece.start : part.stop - piece.start]
