"""Which rank sends which elements to whom when shards are cut anew: pure arithmetic (source: ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoestring.cluster.strategies import Layout

Range = tuple[int, int]


@dataclass(frozen=True)
class Move:
    """Elements [start, stop) of a flat go from one rank to another; source == target: they stay."""

    source: int
    target: int
    start: int
    stop: int


def cut_shard(numel: int, padded: int, layout: Layout, letter: str, rank: int) -> Range:
    """Elements [start, stop) of a flat that a rank holds by a letter, without filling."""
    index, parts = layout.shard(letter, rank)
    width = padded // parts
    return min(index * width, numel), min((index + 1) * width, numel)


def overlap(one: Range, other: Range) -> Range:
    """What two ranges share; empty, at the start of the first, where they share nothing."""
    low, high = max(one[0], other[0]), min(one[1], other[1])
    return (low, high) if low < high else (one[0], one[0])


def plan_moves(
    wanted: Sequence[Range], offers: Sequence[Range | None], layout: Layout
) -> tuple[list[Move], dict[int, list[Range]]]:
    """Cover what each rank wants from what ranks offer: its own first, then its group's, then others',
    spread out.

    Args:
        wanted: by rank.
        offers: by rank; None: nothing.
        layout: the new groups.

    Returns:
        (moves in one order for all ranks, rank -> ranges that nobody offers)
    """
    moves: list[Move] = []
    missing: dict[int, list[Range]] = {}
    givers = [rank for rank, offer in enumerate(offers) if offer is not None]
    for target in range(layout.size):
        group, _ = layout.locate(target)
        near = set(layout.groups[group])
        turn = target % len(givers) if givers else 0
        turned = givers[turn:] + givers[:turn]
        order = [rank for rank in turned if rank == target]
        order += [rank for rank in turned if rank in near and rank != target]
        order += [rank for rank in turned if rank not in near]
        due = [wanted[target]] if wanted[target][0] < wanted[target][1] else []
        for source in order:
            offer = offers[source]
            if offer is None or not due:
                continue
            left: list[Range] = []
            for start, stop in due:
                low, high = overlap((start, stop), offer)
                if low >= high:
                    left.append((start, stop))
                    continue
                moves.append(Move(source, target, low, high))
                left += [part for part in ((start, low), (high, stop)) if part[0] < part[1]]
            due = left
        if due:
            missing[target] = due
    return moves, missing
