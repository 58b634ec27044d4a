"""The machines at hand, as far as planning needs them (source: ours)."""

from __future__ import annotations

import os
from pathlib import Path

from shoestring.base.config import Config


class Device(Config):
    """A compute device.

    Attributes:
        kind: `cpu` or `cuda`.
        cores: cores of a CPU; 1 for an accelerator.
        memory_bytes: what can be used of its memory.
        flops_per_s: measured rate by number of threads, as text keys ("1", "2"), for the dtype planned with.
    """

    kind: str
    cores: int
    memory_bytes: int
    flops_per_s: dict[str, float] = {}


class Node(Config):
    """One host and its devices."""

    name: str
    devices: tuple[Device, ...]


class Link(Config):
    """What joins two workers: bytes per second each way, and seconds of latency."""

    bytes_per_s: float
    latency_s: float


class Cluster(Config):
    """Nodes, the link inside a node, the link between nodes."""

    nodes: tuple[Node, ...]
    inside: Link
    between: Link


def usable_cores() -> int:
    """Cores that this process may run on, less what a container's quota takes away."""
    cores = len(os.sched_getaffinity(0))
    for path, read in (
        (Path("/sys/fs/cgroup/cpu.max"), _quota_v2),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _quota_v1),
    ):
        if path.exists():
            quota = read(path)
            return max(1, min(cores, round(quota))) if quota else cores
    return cores


def usable_memory_bytes() -> int:
    """Memory that can still be used without swapping (MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def _quota_v2(path: Path) -> float:
    quota, period = path.read_text().split()
    return 0.0 if quota == "max" else int(quota) / int(period)


def _quota_v1(path: Path) -> float:
    quota = int(path.read_text())
    return quota / int((path.parent / "cpu.cfs_period_us").read_text()) if quota > 0 else 0.0
