"""Who sends which block to whom, and after what: pure lists of hops, no tensors (source: the flat ring is
common knowledge; the hierarchical ones are ours, after "overlapping rings" of PaRO, arXiv 2310.06003).

A collective is cut into d blocks, one per rank. A *hop* passes one block to the next rank of a ring while
another comes from the rank before. A block travels in chunks, and chunk c may leave as soon as chunk c of
the hop that it depends on is there, so hops overlap. A schedule is one or two *lanes* of hops: each lane
receives in its own order, both at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shoestring.cluster.strategies import Layout

START = -1
Place = Callable[[int], int]


@dataclass(frozen=True)
class Hop:
    """One block goes out, another comes in.

    Attributes:
        lane: 0, or 1 for traffic between groups that runs beside it.
        send_to, receive_from: ranks of the connection.
        sends, receives: blocks.
        adds: what arrives is added to the block; else it replaces it.
        send_after: the hop that completes what is sent; START: it is there from the beginning.
        add_after: the hop whose sum must be in the block before this one's, lest the order of sums, and with
            it the last bit, be left to chance; START: none.
        delivers: what this hop receives is the result of a reduce-scatter.
    """

    lane: int
    send_to: int
    receive_from: int
    sends: int
    receives: int
    adds: bool
    send_after: int = START
    add_after: int = START
    delivers: bool = False


Schedule = tuple[Hop, ...]


@dataclass(frozen=True)
class Ring:
    """A closed row of ranks, seen from one of them.

    Attributes:
        ranks: in the order of the ring.
        position: of this rank.
        lane: which lane its hops belong to.
    """

    ranks: tuple[int, ...]
    position: int
    lane: int = 0

    @property
    def size(self) -> int:
        """Ranks of the ring."""
        return len(self.ranks)

    def at(self, offset: int) -> int:
        """The position `offset` places behind this one."""
        return (self.position - offset) % self.size

    def hop(self, sends: int, receives: int, adds: bool, after: int) -> Hop:
        """A hop along this ring."""
        following, before = self.ranks[self.at(-1)], self.ranks[self.at(1)]
        return Hop(self.lane, following, before, sends, receives, adds, after)


def block_sizes(items: int, parts: int) -> list[int]:
    """Sizes of `parts` blocks of `items` elements, as torch.tensor_split cuts them."""
    least, more = divmod(items, parts)
    return [least + 1] * more + [least] * (parts - more)


def flat(operation: str, ring: Ring, place: Place) -> Schedule:
    """One ring over all ranks: 2 (d-1) hops for all-reduce, d-1 for the others.

    Args:
        operation: `all_gather`, `reduce_scatter` or `all_reduce`.
        place: position in the ring -> the block that belongs there.
    """
    hops: list[Hop] = []
    if operation != "all_gather":
        _reduce(hops, ring, place)
        hops[-1] = replace(hops[-1], delivers=True)
    if operation != "reduce_scatter":
        _gather(hops, ring, place, len(hops) - 1 if hops else START)
    return tuple(hops)


def direct(operation: str, ring: Ring, place: Place) -> Schedule:
    """No ring: everybody sends to everybody at once; one step or two, but many flows leave a group.

    Args:
        place: position -> the block that belongs there.
    """
    own, hops = place(ring.position), []
    offsets = range(1, ring.size)
    if operation != "all_gather":
        hops = [
            Hop(0, ring.ranks[ring.at(-o)], ring.ranks[ring.at(o)], place(ring.at(-o)), own, adds=True)
            for o in offsets
        ]
        hops[-1] = replace(hops[-1], delivers=True)
    summed = len(hops) - 1
    if operation != "reduce_scatter":
        hops += [
            Hop(0, ring.ranks[ring.at(-o)], ring.ranks[ring.at(o)], own, place(ring.at(o)), False, summed)
            for o in offsets
        ]
    return tuple(hops)


def overlapping(operation: str, layout: Layout, rank: int, place: Place) -> Schedule:
    """Both levels at once. All-gather: while a block goes on to the next group, the group gathers what
    arrived before; reduce-scatter is its mirror image, all-reduce one after the other, chunk by chunk.

    Args:
        place: rank -> its block.
    """
    hops: list[Hop] = []
    owned = START
    if operation != "all_gather":
        owned = _reduce_both(hops, layout, rank, place)
        hops[owned] = replace(hops[owned], delivers=True)
    if operation != "reduce_scatter":
        _gather_both(hops, layout, rank, place, owned)
    return tuple(hops)


def sequential(operation: str, layout: Layout, rank: int, place: Place) -> tuple[Schedule, ...]:
    """One level after the other: the schedules to run one by one.

    The same hops as `overlapping`, and the same order of sums, so that results are equal to the last bit.
    """
    stages: list[Schedule] = []
    if operation != "all_gather":
        hops: list[Hop] = []
        owned = _reduce_both(hops, layout, rank, place)
        hops[owned] = replace(hops[owned], delivers=True)
        stages += [_only(hops, 0), _only(hops, 1)]
    if operation != "reduce_scatter":
        hops = []
        _gather_both(hops, layout, rank, place, START)
        stages += [_only(hops, 1), _only(hops, 0)]
    return tuple(stages)


def ring_order(layout: Layout) -> tuple[int, ...]:
    """All ranks group by group, so that one flow alone leaves each group."""
    return tuple(rank for group in layout.groups for rank in group)


def _reduce(hops: list[Hop], ring: Ring, place: Place) -> None:
    for step in range(ring.size - 1):
        after = len(hops) - 1 if step else START
        sends, receives = place(ring.at(step + 1)), place(ring.at(step + 2))
        hops.append(ring.hop(sends, receives, True, after))


def _gather(hops: list[Hop], ring: Ring, place: Place, after: int) -> None:
    for step in range(ring.size - 1):
        hops.append(ring.hop(place(ring.at(step)), place(ring.at(step + 1)), False, after))
        after = len(hops) - 1


def _of_group(layout: Layout, group: int, place: Place) -> Place:
    """Local position -> the block of that rank of a group."""
    return lambda local: place(layout.groups[group][local])


def _levels(layout: Layout, rank: int) -> tuple[Ring, Ring]:
    """(ring inside the group, ring of the peers)."""
    group, local = layout.locate(rank)
    peers = tuple(one[local] for one in layout.groups)
    return Ring(layout.groups[group], local, lane=0), Ring(peers, group, lane=1)


def _reduce_both(hops: list[Hop], layout: Layout, rank: int, place: Place) -> int:
    """The hop that completes this rank's block.

    The group sums the blocks of one group after the other, beginning with the one that travels longest; each
    sum is added to what has come from the group before, and goes on.
    """
    inside, between = _levels(layout, rank)
    summed = last = START
    for step in range(between.size):
        ready = summed if step == 1 else last
        _reduce(hops, inside, _of_group(layout, between.at(step + 1), place))
        summed = len(hops) - 1
        if step:
            sends = place(layout.groups[between.at(step)][inside.position])
            receives = place(layout.groups[between.at(step + 1)][inside.position])
            hops.append(replace(between.hop(sends, receives, True, ready), add_after=summed))
            last = len(hops) - 1
    return last


def _gather_both(hops: list[Hop], layout: Layout, rank: int, place: Place, owned: int) -> None:
    inside, between = _levels(layout, rank)
    after = owned
    for step in range(between.size):
        here = between.at(step)
        arrived = after
        if step < between.size - 1:
            sends = place(layout.groups[here][inside.position])
            receives = place(layout.groups[between.at(step + 1)][inside.position])
            hops.append(between.hop(sends, receives, False, after))
            after = len(hops) - 1
        _gather(hops, inside, _of_group(layout, here, place), arrived)


def _only(hops: Sequence[Hop], lane: int) -> Schedule:
    """The hops of one lane, numbered anew; what they wait for in the other lane is done before they begin."""
    numbers = {old: new for new, old in enumerate(i for i, hop in enumerate(hops) if hop.lane == lane)}
    return tuple(
        replace(
            hop,
            lane=0,
            send_after=numbers[hop.send_after] if hop.send_after in numbers else START,
            add_after=numbers[hop.add_after] if hop.add_after in numbers else START,
        )
        for hop in hops
        if hop.lane == lane
    )
