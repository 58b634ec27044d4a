"""Network namespaces without names (source: ours; setns(2), unshare(2)).

A namespace is held by a file descriptor of the lab and dies with the last process and descriptor that has it:
nothing has to be removed, however the lab ends. The kernel keeps namespaces by thread, so the lab
visits one by moving its calling thread there and back.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.lab.config import LabError

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


def new_namespace() -> int:
    """A descriptor of a fresh network namespace, which has only a loopback that is down.

    Raises:
        LabError: the kernel does not let us.
    """
    with _back_home():
        _call("unshare", _CLONE_NEWNET)
        return os.open(_OWN, os.O_RDONLY)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """What the calling thread does in the block (sockets it opens, processes it starts) happens in there."""
    with _back_home():
        _call("setns", namespace, _CLONE_NEWNET)
        yield


def enter(netns_path: str) -> None:
    """Move the calling thread into a host for good; threads and processes it starts from here on follow.

    Args:
        netns_path: `Lab.hosts[i].netns_path`; works while that lab does, for every process of root.

    Raises:
        LabError: there is no such namespace (any more), or we may not enter it.
    """
    try:
        namespace = os.open(netns_path, os.O_RDONLY)
    except OSError as error:
        raise LabError(f"cannot open {netns_path}: {error.strerror}", "is its lab still up?") from error
    try:
        _call("setns", namespace, _CLONE_NEWNET)
    finally:
        os.close(namespace)


@contextmanager
def _back_home() -> Iterator[None]:
    home = os.open(_OWN, os.O_RDONLY)
    try:
        yield
    finally:
        _call("setns", home, _CLONE_NEWNET)
        os.close(home)


def _call(name: str, *arguments: int) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise LabError(
            f"{name} of a network namespace failed: {os.strerror(number)}",
            "it takes root with CAP_SYS_ADMIN; in a container, start that with --privileged",
        )
