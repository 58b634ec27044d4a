"""A survey among threads: the real wire, with links slowed as a network would slow them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from threading import Lock

import pytest
import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.cluster.topology import load_cluster, save_cluster
from shoestring.jobs.probe import Facts, Findings, Wire, survey, to_cluster
from shoestring.jobs.probe.meter import compute_rate
from shoestring.parallel.group import PeerLostError

CPU = torch.device("cpu")
CLOCK = SystemClock()


class Network:
    """Rates of links in bytes/s: between hosts through one card a host, and of each rank at the most."""

    def __init__(self, nodes: Sequence[str], between: float, slow: dict[int, float]) -> None:
        self.nodes, self.between, self.slow = nodes, between, slow
        self.cards = {node: Lock() for node in nodes}

    def pass_through(self, one: int, other: int, size_bytes: int) -> None:
        """Take the time that the link takes, holding both hosts' cards."""
        rate = min((self.slow[rank] for rank in (one, other) if rank in self.slow), default=1e9)
        hosts = sorted({self.nodes[one], self.nodes[other]})
        with ExitStack() as held:
            if len(hosts) > 1:
                rate = min(rate, self.between)
                for host in hosts:
                    held.enter_context(self.cards[host])
            CLOCK.sleep(size_bytes / rate)


class SlowWire(Wire):
    """A wire through such a network."""

    network: Network

    def exchange(self, peer: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> None:
        super().exchange(peer, outgoing, incoming)
        if self.rank < peer:  # the other waits for the number that follows
            self.network.pass_through(self.rank, peer, outgoing.numel() * outgoing.element_size())


def survey_threads(nodes: Sequence[str], network: Network, seconds: float = 2.0) -> list[Findings]:
    store = dist.HashStore()

    def rank(number: int) -> Findings:
        wire = SlowWire(store, number, len(nodes), CPU, 20.0)
        wire.network = network
        facts = Facts(nodes[number], nodes[number], "cpu", "test", 2, 1, 2**30)
        found = survey(wire, facts, seconds, CLOCK)
        wire.close()
        return found

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(rank, range(len(nodes))))


def test_hosts_behind_slow_shared_cards_are_found(tmp_path: Path) -> None:
    nodes = ["a", "b", "a", "b", "a"]  # ranks need not be sorted by host
    found = survey_threads(nodes, Network(nodes, between=4e7, slow={}), seconds=5.0)
    assert all(other == found[0] for other in found), "every rank gets the same"
    one = found[0]
    assert [worker.name for worker in one.workers] == ["a/0", "a/1", "a/2", "b/0", "b/1"]
    assert one.groups == ((0, 1, 2), (3, 4)), one.groups_reason
    assert one.between.bytes_per_s == pytest.approx(4e7, rel=0.3)
    assert one.inside.bytes_per_s > 3 * one.between.bytes_per_s
    assert one.card_shared, one.card_reason
    cluster = to_cluster(one)
    assert cluster.between.shared and cluster.workers == ("a/0", "a/1", "a/2", "b/0", "b/1")
    assert [device.workers for node in cluster.nodes for device in node.devices] == [3, 2]


def test_a_slow_rank_is_named_and_the_others_are_not() -> None:
    nodes = ["a", "b", "c", "d"]
    found = survey_threads(nodes, Network(nodes, between=1e8, slow={2: 1e7}), seconds=5.0)[0]
    assert [s.worker for s in found.suspects if s.blame == "suspect" and s.what == "links"] == ["c/0"]
    assert "c/0" in to_cluster(found).suspects
    assert found.between.bytes_per_s > 1e7 or found.inside.bytes_per_s > 1e7
    assert not found.card_shared and "no node has two workers" in found.card_reason


def test_the_search_ends_when_time_is_up_and_says_so() -> None:
    nodes = ["a"] * 4
    found = survey_threads(nodes, Network(nodes, between=1e9, slow={}), seconds=0.0)[0]
    assert found.rounds[-1].startswith("time is up") and found.pairs == ()


def test_one_rank_alone_has_a_memory_and_no_link() -> None:
    found = survey_threads(["a"], Network(["a"], between=1e9, slow={}))[0]
    assert found.groups == ((0,),) and found.pairs == () and found.inside == found.between
    assert found.workers[0].alone["fp32"] > 1e6


def test_a_cluster_file_keeps_what_was_found(tmp_path: Path) -> None:
    nodes = ["a", "a"]
    cluster = to_cluster(survey_threads(nodes, Network(nodes, 1e9, {}))[0])
    path = tmp_path / "cluster.toml"
    save_cluster(cluster, path)
    assert load_cluster(path) == cluster


def test_a_missing_peer_is_a_typed_error() -> None:
    with pytest.raises(PeerLostError, match="could not connect"):
        store = dist.HashStore()
        store.set_timeout(timedelta(seconds=0.2))
        Wire(store, 0, 2, CPU, 0.2)


def test_all_hear_what_each_one_says() -> None:
    store = dist.HashStore()

    def rank(number: int) -> list[list[str]]:
        wire = Wire(store, number, 3, CPU, 20.0)
        heard = wire.share(["ü" * number])
        wire.close()
        return heard

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(rank, range(3))) == [[[""], ["ü"], ["üü"]]] * 3


def test_arithmetic_is_measured_and_bounded_in_time() -> None:
    began_s = CLOCK.now()
    assert compute_rate(torch.float32, CPU, 0.01, CLOCK) > 1e7
    assert CLOCK.now() - began_s < 10
