"""Cluster files for the command line's tests: workers of this machine in equal groups."""

from __future__ import annotations

from pathlib import Path

from shoestring.cluster.topology import Cluster, Device, Group, Link, Node, save_cluster


def write_cluster(path: Path, workers: int, groups: int, hosts: int = 1) -> Path:
    """`workers` of each host; fast inside a group, slow between two."""
    rates = {"bf16": 1e11, "fp32": 1e11}
    device = Device(kind="cpu", cores=1, memory_bytes=16 * 2**30, workers=workers, rates=rates)
    nodes = tuple(Node(name=f"host{number}", devices=(device,)) for number in range(hosts))
    names = [name for node in nodes for name in node.workers]
    size = len(names) // groups
    cuts = [names[first : first + size] for first in range(0, len(names), size)]
    cluster = Cluster(
        nodes=nodes,
        inside=Link(bytes_per_s=1e9, latency_s=1e-4),
        between=Link(bytes_per_s=5e7, latency_s=1e-3),
        groups=tuple(Group(name=f"group{i}", workers=tuple(cut)) for i, cut in enumerate(cuts)),
    )
    save_cluster(cluster, path)
    return path
