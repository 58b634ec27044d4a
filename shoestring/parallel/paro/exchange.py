"""What the sharded optimizer asks of the network: gather, reduce and sum over group, peers or world (source:
ours)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

from shoestring.cluster.strategies import Layout

Scope = Literal["group", "peers", "world"]
# The exchange that turns shards of one letter into shards of the other, and back.
SCOPES: Mapping[tuple[str, str], Scope] = MappingProxyType(
    {("I", "N"): "group", ("G", "I"): "peers", ("G", "N"): "world"}
)


class Pending(Protocol):
    """A collective on its way."""

    def wait(self) -> None:
        """Return once the result is there.

        Raises:
            PeerLostError: a peer is gone or cut off.
        """
        ...

    def done(self) -> bool:
        """Whether `wait` would return (or raise) at once."""
        ...


class Exchange(Protocol):
    """Collectives over nested shards: block `Layout.shard("G", rank)[0]` of the world belongs to `rank`.

    Operations of one kind and scope run in the order in which they were issued, which is the same on all
    ranks.
    """

    @property
    def layout(self) -> Layout:
        """The ranks and their groups."""
        ...

    @property
    def rank(self) -> int:
        """This rank."""
        ...

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """Equal shards of all ranks of the scope into `output`; `shard` may be its own place in it."""
        ...

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """This rank's block of the sum of `full` over the scope; `full` may be overwritten."""
        ...

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """Sum over the scope, in place; bit-equal on all its ranks."""
        ...


class Finished:
    """A collective that had nothing to do."""

    def wait(self) -> None:
        """Returns at once."""

    def done(self) -> bool:
        """Always."""
        return True


class Alone:
    """The exchange of a single rank: copies."""

    layout = Layout(((0,),))
    rank = 0

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """A copy."""
        _copy(output, shard)
        return Finished()

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """A copy."""
        _copy(shard, full)
        return Finished()

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """Nothing to add."""
        return Finished()

    def close(self) -> None:
        """Nothing to close."""


@torch.no_grad()
def _copy(target: Tensor, source: Tensor) -> None:
    if target.data_ptr() != source.data_ptr():
        target.copy_(source)
