"""Clusters and jobs for the tests of costs and plans."""

from __future__ import annotations

from shoestring.cluster.costs import JobCost
from shoestring.cluster.topology import Cluster, Device, Link, Node

CARD_BYTES_PER_S = 25e6  # 200 Mbit/s


def hosts(
    count: int,
    workers: int,
    ratio: float = 20.0,
    latency_s: float = 1e-4,
    memory_bytes: int = 8 * 2**30,
    price_per_hour: float = 0.0,
) -> Cluster:
    """`count` equal hosts of `workers` CPU workers, a card each, links `ratio` times as fast inside."""
    device = Device(
        kind="cpu",
        cores=workers,
        workers=workers,
        memory_bytes=memory_bytes,
        rates={"fp32": 1e11, "bf16": 3e11},
    )
    return Cluster(
        nodes=tuple(
            Node(name=f"host{i}", devices=(device,), price_per_hour=price_per_hour) for i in range(count)
        ),
        inside=Link(bytes_per_s=ratio * CARD_BYTES_PER_S, latency_s=latency_s / 10),
        between=Link(bytes_per_s=CARD_BYTES_PER_S, latency_s=latency_s, shared=True),
    )


JOB = JobCost(
    parameters=10_000_000,
    flops_per_sample=6e7 * 128,
    activation_bytes_per_sample=1e6,
    micro_batch=1,
    batch=16,
    base_bytes=0,
    layers=8,
    root_parameters=2_000_000,
    accumulation=4,
    compute_dtype="bf16",
    parameter_bytes=2,
    gradient_bytes=2,
)
