"""The planner weighs every way, chooses the fastest that fits, and says why the others fell."""

from __future__ import annotations

import pytest

from shoestring.cluster.costs import JobCost
from shoestring.cluster.topology import Cluster, Device, Link, Node, usable_cores, usable_memory_bytes
from shoestring.cluster.workers import plan_workers


def cluster(memory_bytes: int = 16 * 2**30, bandwidth: float = 1e9) -> Cluster:
    device = Device(
        kind="cpu", cores=4, memory_bytes=memory_bytes, flops_per_s={"1": 1e11, "2": 1.8e11, "4": 3e11}
    )
    return Cluster(
        nodes=(Node(name="here", devices=(device,)),),
        inside=Link(bytes_per_s=bandwidth, latency_s=1e-4),
        between=Link(bytes_per_s=bandwidth, latency_s=1e-4),
    )


JOB = JobCost(
    parameters=10_000_000, flops_per_sample=1e10, activation_bytes_per_sample=1e6, micro_batch=16, batch=64
)


def test_fast_links_favour_many_workers_slow_links_few() -> None:
    assert plan_workers(JOB, cluster(bandwidth=1e10)).workers == 4
    slow = plan_workers(JOB, cluster(bandwidth=1e7))
    assert slow.workers == 1
    assert [way.workers for way in slow.alternatives] == [1, 2, 4]
    assert all(way.rejected for way in slow.alternatives if way.workers != 1)


def test_the_exchange_term_is_that_of_a_ring_all_reduce() -> None:
    two = plan_workers(JOB, cluster(), wanted=2).alternatives[1]
    assert two.exchange_s == pytest.approx(10_000_000 * 4 / 1e9 + 2e-4)
    assert two.compute_s == pytest.approx(64 * 1e10 / (2 * 1.8e11))


def test_memory_bounds_the_choice() -> None:
    assert plan_workers(JOB, cluster(memory_bytes=700 * 2**20)).workers == 1
    with pytest.raises(ValueError, match="no way fits"):
        plan_workers(JOB, cluster(memory_bytes=2**20))


def test_a_wish_is_followed_and_named() -> None:
    plan = plan_workers(JOB, cluster(), wanted=3)
    assert plan.workers == 3 and "asked for" in plan.reason


def test_this_machine_can_be_described() -> None:
    assert usable_cores() >= 1 and usable_memory_bytes() > 2**20
