"""The exchange of ranks that all keep everything: one collective of the default process group a step
(source: ours)."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from shoestring.cluster.strategies import Layout
from shoestring.parallel.group import peer_errors
from shoestring.parallel.paro.exchange import Finished, Pending, Scope


class PlainExchange:
    """For NNN, which only ever sums over the world. Needs no connections of its own, and has no groups: where
    links differ, rings are quicker.

    Args:
        layout: the ranks; groups do not matter here.
        rank: this rank.
    """

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout = layout
        self.rank = rank

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """Nothing is cut."""
        raise NotImplementedError("nothing is cut, so there is nothing to gather")

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """Nothing is cut."""
        raise NotImplementedError("nothing is cut, so there is nothing to reduce to")

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """Sum over all ranks, in place."""
        if self.layout.size == 1:
            return Finished()
        with peer_errors():
            return _Work(dist.all_reduce(tensor, async_op=True))

    def close(self) -> None:
        """Nothing to close."""


class _Work:
    def __init__(self, work: Any) -> None:
        self._work = work

    def done(self) -> bool:
        return bool(self._work.is_completed())

    def wait(self) -> None:
        with peer_errors():
            self._work.wait()
