"""The machines at hand, as far as planning needs them; TOML in and out (source: ours).

A *worker* is one rank's worth of a device; workers are named `node/0`, `node/1` and so on. A *group* is an
island of workers joined by fast links. Groups may be finer than a node or span several.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from shoestring.base.config import Config, parse_config, read_toml, to_toml
from shoestring.base.errors import ConfigError
from shoestring.base.files import write_whole

KINDS = ("cpu", "cuda")
CGROUPS = Path("/sys/fs/cgroup")
LEAST_BYTES = 1 << 20
PROBE_AGAIN = "run `shoestring probe` again, or mend the file at that place"


class Device(Config):
    """A compute device.

    Attributes:
        kind: `cpu` or `cuda`.
        cores: cores of a CPU; 1 for an accelerator.
        memory_bytes: what can be used of its memory, by all its workers together.
        flops_per_s: measured rate by number of threads, as text keys ("1", "2"), for the dtype planned with.
        name: what the maker calls it.
        workers: workers that share this device.
        rates: measured FLOP/s of one of its workers while all of them compute, by dtype ("bf16", "fp32").
        nominal_flops_per_s: what the maker promises; 0: unknown.
    """

    kind: str
    cores: int
    memory_bytes: int
    flops_per_s: dict[str, float] = {}
    name: str = ""
    workers: int = 1
    rates: dict[str, float] = {}
    nominal_flops_per_s: float = 0.0


class Node(Config):
    """One host and its devices.

    Attributes:
        address: of its network card, as others reach it; empty: only from itself.
        price_per_hour: in the user's currency; 0: not counted.
    """

    name: str
    devices: tuple[Device, ...]
    address: str = ""
    price_per_hour: float = 0.0

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of its workers, device by device."""
        return tuple(f"{self.name}/{i}" for i in range(sum(device.workers for device in self.devices)))


class Link(Config):
    """What joins two workers.

    Attributes:
        bytes_per_s: each way, one pair alone.
        latency_s: one way, of an empty message.
        shared: the workers of one node share this rate (one network card).
    """

    bytes_per_s: float
    latency_s: float
    shared: bool = False


class Group(Config):
    """An island of workers with fast links inside."""

    name: str
    workers: tuple[str, ...]


class Cluster(Config):
    """Nodes and what joins them.

    Attributes:
        inside: the slowest link between two workers of one group.
        between: the slowest link between two workers of different groups.
        groups: islands of fast links; empty: each node is one.
        suspects: nodes or workers that the probe found slow or faulty: name -> why.
    """

    nodes: tuple[Node, ...]
    inside: Link
    between: Link
    groups: tuple[Group, ...] = ()
    suspects: dict[str, str] = {}

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of all workers, group by group."""
        return tuple(worker for group in self.islands for worker in group.workers)

    @property
    def islands(self) -> tuple[Group, ...]:
        """The groups; nodes where none are named."""
        return self.groups or tuple(Group(name=node.name, workers=node.workers) for node in self.nodes)


def load_cluster(path: Path) -> Cluster:
    """The cluster that a TOML file describes.

    Raises:
        ConfigError: it cannot be read, holds unknown keys or wrong types, or contradicts itself.
    """
    cluster = parse_config(Cluster, read_toml(path), str(path))
    check_cluster(cluster, str(path))
    return cluster


def save_cluster(cluster: Cluster, path: Path) -> None:
    """Write a cluster so that `load_cluster` gives an equal one; the file is there whole or not at all.

    Raises:
        ConfigError: the cluster contradicts itself, or the file cannot be written.
    """
    check_cluster(cluster, "the cluster")
    shared = _Shared(inside=cluster.inside, between=cluster.between, suspects=cluster.suspects)
    parts = [
        "# Machines and links, for `shoestring plan` and `run`. In bytes/s, FLOP/s, s and prices an hour.",
        to_toml(shared),
        *(f"[[nodes]]\n{to_toml(node)}" for node in cluster.nodes),
        *(f"[[groups]]\n{to_toml(group)}" for group in cluster.groups),
    ]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, "\n".join(parts).encode())
    except OSError as error:
        said = f"cannot write {path}: {error.strerror}"
        raise ConfigError(said, "choose a path that can be written") from error


def check_cluster(cluster: Cluster, origin: str) -> None:
    """Hold a cluster to what planning takes for granted.

    Args:
        origin: where it comes from, for the error: a file's name.

    Raises:
        ConfigError: no nodes, a name twice, a worker in two groups or in none, an unknown worker, a rate,
            size or price that is no number above zero (prices and latencies may be zero).
    """
    wrong = list(_contradictions(cluster))
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ConfigError(f"{origin}: {'; '.join(wrong[:3])}{more}", PROBE_AGAIN)


def check_against(cluster: Cluster, found: Sequence[str], origin: str = "the cluster file") -> None:
    """Hold a cluster to the workers that are really there.

    Args:
        found: their names (`node/0`), in any order.

    Raises:
        ConfigError: some are missing, not in the file, or there twice.
    """
    named, there = Counter(cluster.workers), Counter(found)
    differences = [
        f"{title} {_shown(names)}"
        for title, names in (
            ("it names", sorted((named - there).elements())),
            ("it does not name", sorted(set(there) - set(named))),
            ("these are there twice:", sorted(name for name, times in there.items() if times > 1)),
        )
        if names
    ]
    if named - there:
        differences[0] += ", which are not there"
    if differences:
        raise ConfigError(
            f"{origin} does not match the machines: {'; '.join(differences)}",
            "run `shoestring probe` again on these machines, or start those that the file names",
        )


class _Shared(Config):
    """The part of a cluster that is no list."""

    inside: Link
    between: Link
    suspects: dict[str, str]


def _contradictions(cluster: Cluster) -> Iterator[str]:
    if not cluster.nodes:
        yield "there are no nodes"
    yield from _twice("node", (node.name for node in cluster.nodes))
    yield from _twice("group", (group.name for group in cluster.groups))
    for name, link in (("inside", cluster.inside), ("between", cluster.between)):
        yield from _not_above_zero(f"{name}.bytes_per_s", link.bytes_per_s)
        yield from _below_zero(f"{name}.latency_s", link.latency_s)
    for node in cluster.nodes:
        if not node.name or "/" in node.name:
            yield f"{node.name!r} is no name for a node (some text without a slash)"
        if not node.devices:
            yield f"node {node.name} has no devices"
        yield from _below_zero(f"price_per_hour of {node.name}", node.price_per_hour)
        for device in node.devices:
            yield from _wrong_device(node.name, device)
    known = {worker for node in cluster.nodes for worker in node.workers}
    grouped = [worker for group in cluster.groups for worker in group.workers]
    yield from _twice("worker", grouped, " among the groups")
    unknown, missing = sorted(set(grouped) - known), sorted(known - set(grouped))
    if unknown:
        yield f"the groups name unknown workers: {_shown(unknown)}"
    if cluster.groups and missing:
        yield f"no group names {_shown(missing)}"
    yield from (f"group {group.name} is empty" for group in cluster.groups if not group.workers)


def _wrong_device(node: str, device: Device) -> Iterator[str]:
    if device.kind not in KINDS:
        yield f"a device of {node} is of kind {device.kind!r}, known are {' and '.join(KINDS)}"
    counts = {"cores": device.cores, "memory_bytes": device.memory_bytes, "workers": device.workers}
    for key, value in counts.items():
        yield from _not_above_zero(f"{key} of {node}", value)
    for name, rate in (*device.flops_per_s.items(), *device.rates.items()):
        yield from _not_above_zero(f"the rate {name!r} of {node}", rate)
    yield from _below_zero(f"nominal_flops_per_s of {node}", device.nominal_flops_per_s)


def _not_above_zero(name: str, value: float) -> Iterator[str]:
    if not (math.isfinite(value) and value > 0):
        yield f"{name} is {value}, not a number above zero"


def _below_zero(name: str, value: float) -> Iterator[str]:
    if not (math.isfinite(value) and value >= 0):
        yield f"{name} is {value}, not zero or more"


def _twice(what: str, names: Iterable[str], where: str = "") -> Iterator[str]:
    again = sorted(name for name, times in Counter(names).items() if times > 1)
    if again:
        yield f"{what} {_shown(again)} is there twice{where}"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def usable_cores() -> int:
    """Cores that this process may run on, less what a container's quota takes away."""
    cores = len(os.sched_getaffinity(0))
    for path, read in (
        (CGROUPS / "cpu.max", _quota_v2),
        (CGROUPS / "cpu/cpu.cfs_quota_us", _quota_v1),
    ):
        if path.exists():
            quota = read(path)
            return max(1, min(cores, round(quota))) if quota else cores
    return cores


def usable_memory_bytes(meminfo: Path = Path("/proc/meminfo"), groups: Path = CGROUPS) -> int:
    """Memory that can still be used without swapping: the machine's (MemAvailable), and no more than a
    container's limit leaves, but 1 MiB at least.

    Args:
        meminfo, groups: where Linux tells of the machine's memory, and of a container's limits.

    Raises:
        OSError: `meminfo` does not say.
    """
    machine_bytes = _field(meminfo, "MemAvailable:")
    if machine_bytes is None:
        raise OSError(f"{meminfo} has no MemAvailable")
    found = [machine_bytes * 1024]
    for limit, used, cache in (
        (groups / "memory.max", "memory.current", "inactive_file"),
        (groups / "memory/memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if limit.exists() and (text := limit.read_text().strip()) != "max":
            found.append(int(text) - _held_bytes(limit.parent, used, cache))
    return max(LEAST_BYTES, min(found))


def _quota_v2(path: Path) -> float:
    quota, period = path.read_text().split()
    return 0.0 if quota == "max" else int(quota) / int(period)


def _quota_v1(path: Path) -> float:
    quota = int(path.read_text())
    return quota / int((path.parent / "cpu.cfs_period_us").read_text()) if quota > 0 else 0.0


def _held_bytes(group: Path, used: str, cache: str) -> int:
    """What a container holds, without the files' pages that the kernel gives up first. 0: not known."""
    if not (group / used).exists():
        return 0
    held_bytes = int((group / used).read_text())
    stat = group / "memory.stat"
    return max(0, held_bytes - ((_field(stat, cache) or 0) if stat.exists() else 0))


def _field(path: Path, name: str) -> int | None:
    """The number behind a name, in a file of such lines."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return None
