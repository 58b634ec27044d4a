"""CPU quotas of hosts, by cgroups of version 1 or 2 (source: ours; the kernel's cgroup documentation).

Only the cpu controller is moved: memory and all else stay where the lab's own process has them.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab.config import LabError, check_cores
from benchmarks.lab.reaper import sweep

PERIOD_US = 10_000
"""Of the quota: the kernel's 100 ms would be stalls of many steps of a small model."""
SHORTEST_US = 1_000


@dataclass(frozen=True)
class Hierarchy:
    """Where the cpu controller's groups live: a directory, and 1 or 2 for how they are written."""

    root: Path
    version: int


def find_hierarchy(mounts: str, own: str) -> Hierarchy | None:
    """The cpu controller's hierarchy; None where the kernel or the container has none.

    Args:
        mounts: text of /proc/self/mounts.
        own: text of /proc/self/cgroup: which group we are in.
    """
    for line in mounts.splitlines():
        _, folder, kind, options, *_ = line.split(" ")
        if kind == "cgroup" and "cpu" in options.split(","):
            # Below our own group, so that what limits us limits the hosts too; a container may not see it.
            paths = [part[2] for part in _cgroup_lines(own) if "cpu" in part[1].split(",")]
            below = [Path(folder) / path.strip("/") for path in paths]
            return Hierarchy(next((path for path in below if path.is_dir()), Path(folder)), 1)
    for line in mounts.splitlines():
        _, folder, kind, *_ = line.split(" ")
        controllers = Path(folder) / "cgroup.controllers"
        # Groups of version 2 that have processes may not have children with controllers; the root may.
        if kind == "cgroup2" and controllers.exists() and "cpu" in controllers.read_text().split():
            return Hierarchy(Path(folder), 2)
    return None


def _cgroup_lines(own: str) -> list[list[str]]:
    return [line.split(":", 2) for line in own.splitlines() if line.count(":") >= 2]


def quota_us(cores: float) -> tuple[int, int]:
    """(quota, period) in microseconds; the period grows where the quota would be below the kernel's 1 ms."""
    period = max(PERIOD_US, round(SHORTEST_US / cores))
    return round(cores * period), period


class Quotas:
    """One cgroup per host, below one for the lab.

    Args:
        hierarchy: where.
        name: of the lab.
        hosts: how many.

    Raises:
        LabError: the groups cannot be made.
    """

    def __init__(self, hierarchy: Hierarchy, name: str, hosts: int) -> None:
        self._version = hierarchy.version
        self.path = hierarchy.root / name
        sweep(str(hierarchy.root))
        try:
            self.path.mkdir()
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if self._version == 2:
                for above in (hierarchy.root, self.path):
                    (above / "cgroup.subtree_control").write_text("+cpu")
            for host in range(hosts):
                self._host(host).mkdir()
        except OSError as error:
            raise LabError(
                f"cannot make CPU groups in {hierarchy.root}: {error.strerror}",
                "run where cgroups can be written (a container: --privileged --cgroupns=host)",
            ) from error

    def set(self, host: int, cores: float | None) -> None:
        """Let the host's processes use that many cores together; None: all there are.

        Raises:
            ConfigError: no such share can be kept.
            LabError: the kernel refuses.
        """
        if cores is not None:
            check_cores(cores)
        quota, period = (-1, PERIOD_US) if cores is None else quota_us(cores)
        group = self._host(host)
        try:
            if self._version == 2:
                (group / "cpu.max").write_text(f"{quota if quota > 0 else 'max'} {period}")
            else:
                (group / "cpu.cfs_quota_us").write_text("-1")
                (group / "cpu.cfs_period_us").write_text(str(period))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
        except OSError as error:
            raise LabError(
                f"the kernel refuses a quota of {cores} cores: {error.strerror}",
                "take less than the group above has, which a container's limit may be",
            ) from error

    def processes(self, host: int) -> Path:
        """The file that a process writes 0 into to become one of the host's."""
        return self._host(host) / "cgroup.procs"

    def close(self) -> None:
        """Give up the lock that keeps other labs from sweeping the groups; the reaper removes them."""
        os.close(self._lock)

    def _host(self, host: int) -> Path:
        return self.path / f"host{host}"
