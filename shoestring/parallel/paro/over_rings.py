"""The sharded optimizer's exchange over `parallel.rings` (source: ours)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from shoestring.cluster.strategies import Layout, Strategy
from shoestring.parallel.paro.exchange import SCOPES, Pending, Scope
from shoestring.parallel.rings import Choice, Request, Rings, choose
from shoestring.parallel.rings.rings import Watch


class RingExchange:
    """Two sets of rings: gathers and reductions run beside each other, each in its own fixed order.

    Args:
        layout: the ranks and their groups.
        rank: this rank.
        store: for the rendezvous; the default process group's where not given.
        device: decides the backend.
        timeout_s: longest silence of a peer.
        choose: which ring for which message.
        name: of this exchange on the store; each one formed on a store needs its own.
        strategy: connects only what this one uses; all scopes where not given.
        watch: told of each collective, see `Rings`.
    """

    def __init__(
        self,
        layout: Layout,
        rank: int,
        store: dist.Store | None = None,
        device: torch.device | str = "cpu",
        timeout_s: float = 600.0,
        choose: Callable[[Request], Choice] = choose,
        name: str = "paro",
        strategy: Strategy | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.layout = layout
        self.rank = rank
        self._sets: list[Rings] = []
        try:
            for use, scopes in zip(("gather", "reduce"), scopes_of(strategy), strict=True):
                self._sets.append(
                    Rings(
                        layout,
                        rank,
                        store,
                        device,
                        timeout_s,
                        order="nested",
                        scopes=scopes,
                        choose=choose,
                        name=f"{name}/{use}",
                        watch=watch,
                    )
                )
        except BaseException:
            self.close()
            raise

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """Equal shards of all ranks of the scope into `output`; `shard` may be its own place in it."""
        return self._sets[0].all_gather(output, shard, scope)

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """This rank's block of the sum of `full`; `full` is overwritten."""
        return self._sets[1].reduce_scatter(shard, full, scope)

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """Sum over the scope, in place."""
        return self._sets[1].all_reduce(tensor, scope)

    def close(self) -> None:
        """End threads and connections; may be called again."""
        for rings in self._sets:
            rings.close()


def scopes_of(strategy: Strategy | None) -> tuple[tuple[Scope, ...], tuple[Scope, ...]]:
    """Scopes that a strategy gathers over, and those that it sums over (always the world: norms are summed
    there)."""
    every: tuple[Scope, ...] = ("world", "group", "peers")
    if strategy is None:
        return every, every
    p, g, o = strategy.parameters, strategy.gradients, strategy.states
    gathers = {SCOPES[pair] for pair in ((p, "N"), (o, p)) if pair in SCOPES}
    sums = {SCOPES[pair] for pair in ((g, "N"), (o, g)) if pair in SCOPES} | {"world"}
    if o == "I":
        sums.add("peers")
    return tuple(s for s in every if s in gathers), tuple(s for s in every if s in sums)
