"""Bytes and seconds of collectives, held against schedules that are written out message by message."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, equal_groups
from shoestring.cluster.topology import Cluster, Group
from shoestring.cluster.wires import Kind, Traffic, wires_of
from tests.cluster.clusters import CARD_BYTES_PER_S, hosts

Message = tuple[int, int, float]  # from, to, bytes
UNIT = 1680.0  # divides by all sizes here


def ring(members: Sequence[int], block: float) -> list[Message]:
    """An all-gather block by block: each block visits everybody but its owner."""
    sent = []
    for owner in range(len(members)):
        for step in range(len(members) - 1):
            a = members[(owner + step) % len(members)]
            b = members[(owner + step + 1) % len(members)]
            sent.append((a, b, block))
    return sent


def messages(kind: Kind, scope: str, layout: Layout, size: float) -> list[Message]:
    """All messages of a collective; a reduce-scatter is an all-gather backwards, an all-reduce both."""
    peers = [[group[j] for group in layout.groups] for j in range(layout.group_size)]
    sent: list[Message] = []
    if scope == "group":
        for group in layout.groups:
            sent += ring(group, size / layout.group_size)
    elif scope == "peers":
        for members in peers:
            sent += ring(members, size / layout.count)
    elif scope == "flat":
        sent += ring([rank for group in layout.groups for rank in group], size / layout.size)
    else:
        for members in peers:
            sent += ring(members, size / layout.size)
        for group in layout.groups:
            for _ in range(layout.count):
                sent += ring(group, size / layout.size)
    back = [(b, a, n) for a, b, n in sent]
    return {"all_gather": sent, "reduce_scatter": back, "all_reduce": sent + back}[kind]


def counted(sent: list[Message], node: Sequence[int]) -> tuple[set[float], float, float]:
    """(bytes sent by each worker, most that a card sends, most that stays in a node)."""
    workers, card, local = Counter[int](), Counter[int](), Counter[int]()
    for a, b, size in sent:
        workers[a] += size  # type: ignore[assignment]
        (local if node[a] == node[b] else card)[node[a]] += size  # type: ignore[assignment]
    return set(workers.values()), max(card.values(), default=0), max(local.values(), default=0)


LAYOUTS = [(1, 4), (4, 1), (2, 2), (2, 4), (4, 2), (3, 2), (2, 3)]
KINDS: tuple[Kind, ...] = ("all_gather", "reduce_scatter", "all_reduce")


@pytest.mark.parametrize(("count", "workers"), LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_messages(count: int, workers: int, kind: Kind) -> None:
    layout = equal_groups(count * workers, workers)
    wires = wires_of(hosts(count, workers), layout)
    node = [rank // workers for rank in range(layout.size)]
    passes = 2 if kind == "all_reduce" else 1
    got: dict[str, Traffic] = {
        "group": wires.collective(kind, "group", UNIT),
        "peers": wires.collective(kind, "peers", UNIT),
        "flat": wires.world("flat", passes, UNIT),
        "overlap": wires.world("overlap", passes, UNIT),
        "sequential": wires.world("sequential", passes, UNIT),
    }
    for scope, traffic in got.items():
        sent = messages(kind, scope, layout, UNIT)
        each, card, local = counted(sent, node)
        assert {traffic.worker_bytes} == (each or {0}), scope
        assert (traffic.card_bytes, traffic.local_bytes) == (card, local), scope


def test_two_groups_on_one_host_share_its_card() -> None:
    one = hosts(2, 4)
    names = one.workers
    islands = tuple(Group(name=f"g{i}", workers=names[2 * i : 2 * i + 2]) for i in range(4))
    finer = one.model_copy(update={"groups": islands})
    wires = wires_of(finer, equal_groups(8, 2))
    alone = wires_of(hosts(4, 2), equal_groups(8, 2))
    # Of the ring of peers through four groups two hops leave a host: half of them, so as many bytes per card.
    assert wires.peers.card_flows == alone.peers.card_flows == 2
    assert wires.peers.local_flows == 2


def test_the_overlapping_ring_beats_the_flat_one_by_the_bytes_on_the_card() -> None:
    for count, workers, bound in ((2, 2, 1.5), (2, 4, 1.75)):
        wires = wires_of(
            hosts(count, workers, ratio=1e9, latency_s=0.0), equal_groups(count * workers, workers)
        )
        flat, overlap = (wires.world(method, 2, 1e8) for method in ("flat", "overlap"))
        assert flat.card_bytes / overlap.card_bytes == pytest.approx(bound)
        assert flat.time_s / overlap.time_s == pytest.approx(bound, rel=1e-6)
        assert wires.collective("all_reduce", "world", 1e8).method == "overlap"


def test_small_messages_and_equal_links_go_flat() -> None:
    wires = wires_of(hosts(2, 2, ratio=1.0, latency_s=0.0), equal_groups(4, 2))
    assert wires.collective("all_gather", "world", 1e8).method != "sequential"
    assert wires_of(hosts(1, 4), equal_groups(4, 4)).collective("all_gather", "world", 8.0).method == "flat"


def test_peers_share_the_card_and_a_flat_ring_has_it_alone() -> None:
    wires = wires_of(hosts(2, 2, latency_s=0.0), equal_groups(4, 2))
    assert wires.peers.s_per_byte == pytest.approx(2 / CARD_BYTES_PER_S)
    assert wires.flat.s_per_byte == pytest.approx(1 / CARD_BYTES_PER_S)


def test_a_lone_worker_moves_nothing() -> None:
    wires = wires_of(hosts(1, 1), equal_groups(1, 1))
    assert wires.collective("all_reduce", "world", 1e9).time_s == 0


def test_more_ranks_than_workers_need_one_node() -> None:
    two: Cluster = hosts(2, 2)
    with pytest.raises(ConfigError, match="4 workers, but 6 ranks"):
        wires_of(two, equal_groups(6, 3))
    one = wires_of(hosts(1, 2), equal_groups(6, 3))
    assert (one.flat.card_flows, one.flat.local_flows) == (0, 6)
