"""Where a rank sits in each scope, and which schedules follow (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout
from shoestring.parallel.rings.choice import Method, Operation, Scope
from shoestring.parallel.rings.schedule import (
    Ring,
    Schedule,
    direct,
    flat,
    overlapping,
    ring_order,
    sequential,
)

SCOPES: tuple[Scope, ...] = ("world", "group", "peers")


@dataclass(frozen=True)
class Seat:
    """A rank's place in one scope.

    Attributes:
        name: of this scope's connection: the scope, and which of the groups or rows of peers.
        members: global ranks in the order of the ring.
        position: of this rank among them.
        blocks: the block of each member.
        numbers: the rank of each member on the connection.
    """

    scope: Scope
    name: str
    layout: Layout
    rank: int
    members: tuple[int, ...]
    position: int
    blocks: tuple[int, ...]
    numbers: tuple[int, ...]

    @staticmethod
    def of(scope: Scope, layout: Layout, rank: int, order: str) -> Seat:
        """The seat of `rank`.

        Raises:
            ConfigError: no such scope or order.
        """
        group, local = layout.locate(rank)
        if scope == "world":
            members = ring_order(layout)
            if order not in ("rank", "nested"):
                raise ConfigError(f"there is no order {order!r} of blocks", "take `rank` or `nested`")
            blocks = members if order == "rank" else tuple(layout.shard("G", one)[0] for one in members)
            return Seat(scope, scope, layout, rank, members, members.index(rank), blocks, members)
        places: tuple[int, ...]
        if scope == "group":
            places = tuple(range(layout.group_size))
            return Seat(scope, f"group/{group}", layout, rank, layout.groups[group], local, places, places)
        if scope == "peers":
            places = tuple(range(layout.count))
            peers = tuple(one[local] for one in layout.groups)
            return Seat(scope, f"peers/{local}", layout, rank, peers, group, places, places)
        raise ConfigError(f"there is no scope {scope!r}", f"take one of {', '.join(SCOPES)}")

    @property
    def size(self) -> int:
        """Ranks of the scope."""
        return len(self.members)

    @property
    def block(self) -> int:
        """The block that belongs to this rank."""
        return self.blocks[self.position]

    @property
    def number(self) -> int:
        """This rank on the connection."""
        return self.numbers[self.position]

    def schedules(self, operation: Operation, method: Method) -> tuple[Schedule, ...]:
        """What to run, one after the other.

        Args:
            method: `flat`, `direct`, or, in a world of two levels, `sequential` or `overlap`.
        """
        ring = Ring(self.numbers, self.position)
        if method == "direct":
            return (direct(operation, ring, self.blocks.__getitem__),)
        if method == "flat":
            return (flat(operation, ring, self.blocks.__getitem__),)
        place = dict(zip(self.members, self.blocks, strict=True)).__getitem__
        if method == "overlap":
            return (overlapping(operation, self.layout, self.rank, place),)
        return sequential(operation, self.layout, self.rank, place)
