"""Ends what a lab leaves behind, also after its SIGKILL (source: ours).

Runs as a process of its own, from the standard library alone so that it is up in milliseconds. It waits for
the end of the lab, kills every process that is in one of its namespaces or cgroups, and removes the cgroups.
Namespaces and their links go with the last descriptor, which is this process's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Collection, Iterator

PREFIX = "shoelab-"
PATIENCE_S = 10.0
LOOK_S = 0.02


def reap(namespaces: Collection[int], cgroup: str, spare: Collection[int]) -> list[str]:
    """Kill all processes of a lab and remove its cgroups.

    Args:
        namespaces: inode numbers of its network namespaces, which somebody holds open meanwhile.
        cgroup: its directory; empty: it has none.
        spare: process ids to leave alone: the caller, and the lab itself.

    Returns:
        What could not be removed within 10 s; empty when all is gone.
    """
    until_s = time.monotonic() + PATIENCE_S
    while True:
        living = ({*_in_namespaces(namespaces)} | {*_in_cgroup(cgroup)}) - {*spare}
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not living and _remove(cgroup):
            return []
        if time.monotonic() > until_s:
            return [f"process {pid}" for pid in sorted(living)] + ([f"cgroup {cgroup}"] if cgroup else [])
        time.sleep(LOOK_S)


def sweep(root: str) -> list[str]:
    """Remove cgroups under `root` of labs whose process and reaper are both gone; returns their names."""
    swept = []
    for name in sorted(os.listdir(root)):
        if not name.startswith(PREFIX) or _exists(name.removeprefix(PREFIX).split("-")[0]):
            continue
        path = os.path.join(root, name)
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                # A lab in another container has a process that we cannot see, but its lock we can.
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                reap((), path, ())
                swept.append(name)
            finally:
                os.close(held)
    return swept


def _exists(pid: str) -> bool:
    return os.path.exists(f"/proc/{pid}")


def _in_namespaces(inodes: Collection[int]) -> Iterator[int]:
    """A zombie is in none: its link cannot be read any more."""
    for name in os.listdir("/proc") if inodes else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}/ns/net").st_ino in inodes:
                    yield int(name)


def _in_cgroup(cgroup: str) -> Iterator[int]:
    for directory, _, files in os.walk(cgroup) if cgroup else ():
        if "cgroup.procs" in files:
            with contextlib.suppress(OSError), open(os.path.join(directory, "cgroup.procs")) as processes:
                yield from (int(pid) for pid in processes.read().split() if int(pid))


def _remove(cgroup: str) -> bool:
    """Whether it is gone; a cgroup that has just lost its last process may be busy for a moment."""
    if cgroup and os.path.isdir(cgroup):
        for directory, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
    return not (cgroup and os.path.isdir(cgroup))


def main(lab: int, cgroup: str, namespaces: list[int]) -> int:
    """Wait until process `lab` is gone or closes our stdin, then reap.

    Args:
        namespaces: descriptors that we inherited.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ends = [sys.stdin.fileno()]
    # A copy of the pipe may live on in a fork of the lab; the process itself cannot.
    with contextlib.suppress(ProcessLookupError):
        ends.append(os.pidfd_open(lab))
        select.select(ends, [], [])
    inodes = {os.fstat(namespace).st_ino for namespace in namespaces}
    left = reap(inodes, cgroup, {os.getpid(), lab})
    print("\n".join(left), end="", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], [int(number) for number in sys.argv[3:]]))
