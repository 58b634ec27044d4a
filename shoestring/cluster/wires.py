"""Rings over a cluster's links: what a collective costs in seconds and in bytes on each wire.

A ring of d members moves S bytes in d - 1 steps of S/d; all-reduce is reduce-scatter and then all-gather.
Each step lasts as long as its slowest hop; hops that share a card share its rate (source: ours; the
hierarchical rings after PaRO, arXiv 2310.06003, whose exact schedule is not published).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout
from shoestring.cluster.topology import Cluster, Link

Kind = Literal["all_gather", "reduce_scatter", "all_reduce"]
Scope = Literal["group", "peers", "world"]
Method = Literal["none", "flat", "sequential", "overlap"]
Hop = tuple[int, int]


@dataclass(frozen=True)
class Traffic:
    """What one collective costs.

    Attributes:
        method: how it runs; `flat` where there is one level only, `none` where nothing moves.
        time_s: from the first byte to the last, alone on the wires.
        worker_bytes: sent by each worker (as many are received).
        card_bytes: sent through the network card of the busiest node.
        local_bytes: sent between workers of one node, on the busiest node.
    """

    method: Method
    time_s: float
    worker_bytes: float
    card_bytes: float
    local_bytes: float


NOTHING = Traffic("none", 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pipe:
    """Equal rings that run at the same time.

    Attributes:
        members: d, of each ring.
        s_per_byte, latency_s: of the slowest hop, sharing counted in.
        card_flows, local_flows: hops that leave a node, and that stay inside one, at the node that has most.
    """

    members: int
    s_per_byte: float
    latency_s: float
    card_flows: int
    local_flows: int

    def run(self, steps: int, block_bytes: float, method: Method = "flat") -> Traffic:
        """`steps` steps in which every member sends a block."""
        if steps == 0 or block_bytes == 0:
            return NOTHING
        sent = steps * block_bytes
        time_s = steps * (self.latency_s + block_bytes * self.s_per_byte)
        return Traffic(method, time_s, sent, sent * self.card_flows, sent * self.local_flows)


@dataclass(frozen=True)
class Wires:
    """The rings of a layout on a cluster: inside groups, between peers, and flat through all ranks."""

    layout: Layout
    group: Pipe
    peers: Pipe
    flat: Pipe

    def collective(self, kind: Kind, scope: Scope, size_bytes: float) -> Traffic:
        """The cheapest way to run a collective.

        Args:
            size_bytes: the whole tensor: what an all-gather yields and a reduce-scatter takes.
        """
        passes = 2 if kind == "all_reduce" else 1
        if scope != "world":
            pipe = self.group if scope == "group" else self.peers
            return pipe.run(passes * (pipe.members - 1), size_bytes / pipe.members)
        ways = [self.world(method, passes, size_bytes) for method in self._methods()]
        return min(ways, key=lambda way: way.time_s)

    def world(self, method: Method, passes: int, size_bytes: float) -> Traffic:
        """A collective over all n = g m ranks by one method.

        - flat: n - 1 steps of S/n in one ring, group by group.
        - sequential: g - 1 steps of S/n between peers, and m - 1 of S/m inside groups, one after the other.
        - overlap: the group gathers the block of step k while that of step k + 1 travels:
          (g - 1) max(between, stage) + stage, where a stage is m - 1 steps of S/n inside the group.
        """
        n, g, m = self.layout.size, self.layout.count, self.layout.group_size
        block = size_bytes / n
        if method == "flat":
            return self.flat.run(passes * (n - 1), block, "flat")
        between = self.peers.run(passes * (g - 1), block)
        if method == "sequential":
            inside = self.group.run(passes * (m - 1), size_bytes / m)
            time_s = between.time_s + inside.time_s
        else:
            inside = self.group.run(passes * g * (m - 1), block)
            stage_s = inside.time_s / g
            time_s = max(between.time_s, (g - 1) * stage_s) + stage_s
        return Traffic(
            method,
            time_s,
            between.worker_bytes + inside.worker_bytes,
            between.card_bytes + inside.card_bytes,
            between.local_bytes + inside.local_bytes,
        )

    def _methods(self) -> tuple[Method, ...]:
        # Of equal times the first is taken: the simplest.
        two_levels = self.layout.count > 1 and self.layout.group_size > 1
        return ("flat", "overlap", "sequential") if two_levels else ("flat",)


def wires_of(cluster: Cluster, layout: Layout) -> Wires:
    """The rings of a layout on a cluster.

    Rank groups[a][b] of the layout, counted group by group, is the worker at that place of `cluster.workers`.
    Where the cluster is one node that names other workers than there are ranks, all ranks are on that node.

    Raises:
        ConfigError: ranks and workers do not match.
    """
    ranks = [rank for group in layout.groups for rank in group]
    if len(cluster.workers) == layout.size:
        where = dict(zip(ranks, cluster.workers, strict=True))
        owner = {worker: node.name for node in cluster.nodes for worker in node.workers}
        island = {worker: group.name for group in cluster.islands for worker in group.workers}
        nodes = {rank: owner[where[rank]] for rank in ranks}
        islands = {rank: island[where[rank]] for rank in ranks}
    elif len(cluster.nodes) == 1:
        nodes = dict.fromkeys(ranks, cluster.nodes[0].name)
        islands = {rank: str(number) for number, group in enumerate(layout.groups) for rank in group}
    else:
        raise ConfigError(
            f"the cluster has {len(cluster.workers)} workers, but {layout.size} ranks are to be placed",
            "start one rank for each worker of the cluster, or run `shoestring probe` again",
        )
    peers = [[group[j] for group in layout.groups] for j in range(layout.group_size)]
    links = (cluster.inside, cluster.between)
    return Wires(
        layout,
        _pipe(layout.groups, nodes, islands, links),
        _pipe(peers, nodes, islands, links),
        _pipe([ranks], nodes, islands, links),
    )


def _pipe(
    rings: Sequence[Sequence[int]],
    nodes: dict[int, str],
    islands: dict[int, str],
    links: tuple[Link, Link],
) -> Pipe:
    hops = [(ring[i], ring[(i + 1) % len(ring)]) for ring in rings if len(ring) > 1 for i in range(len(ring))]
    inside, between = links
    leaving, arriving = Counter[tuple[str, bool, bool]](), Counter[tuple[str, bool, bool]]()
    flows = Counter[tuple[str, bool]]()

    def kind(hop: Hop) -> tuple[bool, bool]:
        """(stays in its island, stays in its node): hops of one kind share what they pass."""
        a, b = hop
        return islands[a] == islands[b], nodes[a] == nodes[b]

    for a, b in hops:
        leaving[(nodes[a], *kind((a, b)))] += 1
        arriving[(nodes[b], *kind((a, b)))] += 1
        flows[(nodes[a], nodes[a] == nodes[b])] += 1
    slowest, latency_s = 0.0, 0.0
    for a, b in hops:
        link = inside if islands[a] == islands[b] else between
        sharing = max(leaving[(nodes[a], *kind((a, b)))], arriving[(nodes[b], *kind((a, b)))])
        slowest = max(slowest, (sharing if link.shared else 1) / link.bytes_per_s)
        latency_s = max(latency_s, link.latency_s)
    return Pipe(
        len(rings[0]),
        slowest,
        latency_s,
        max((count for (_, local), count in flows.items() if not local), default=0),
        max((count for (_, local), count in flows.items() if local), default=0),
    )
