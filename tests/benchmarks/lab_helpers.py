"""What the tests of the lab share: looking for its traces, and doing things on a host."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from benchmarks.lab import LabError, enter, require
from benchmarks.lab.lab import MARK
from benchmarks.lab.namespaces import new_namespace

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


@functools.cache
def why_no_lab() -> str:
    """Why no lab can be built here; empty where one can."""
    try:
        require("ip", "tc", "nft")
        os.close(new_namespace())
    except LabError as error:
        return error.what
    return ""


needs_lab = pytest.mark.skipif(bool(why_no_lab()), reason=why_no_lab())


def listens(netns_path: str, address: str, port: int) -> bool:
    """Whether somebody takes connections there, asked from within that host."""

    def ask() -> bool:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1.0):
            return True
        return False

    return on_host(netns_path, ask)


def processes_of(lab: str) -> dict[int, str]:
    """Living processes with this lab's name, or its beginning, in their environment: pid -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if f"{MARK}={lab}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def namespaces_of(pids: list[int]) -> set[int]:
    """Inodes of the network namespaces that these are in, less our own."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            inodes.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
    return inodes - {os.stat("/proc/self/ns/net").st_ino}


def holders(inodes: set[int]) -> set[int]:
    """Processes that are in one of these namespaces or have it open."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                for link in (folder / "ns/net", *(folder / "fd").iterdir()):
                    with contextlib.suppress(OSError):
                        if os.readlink(link).startswith("net:[") and link.stat().st_ino in inodes:
                            found.add(int(folder.name))
    return found


def cgroups_of(lab: str) -> list[Path]:
    """Directories of cgroups whose name begins so."""
    return [path for path in Path("/sys/fs/cgroup").glob(f"**/{lab}*") if path.is_dir()]


def links() -> set[str]:
    """Network devices of the namespace that the tests run in."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return {line.split(":")[0].strip() for line in lines if ":" in line}


def on_host(netns_path: str, work: Callable[[], T]) -> T:
    """Do something in a thread that has entered a host."""
    results: list[T] = []
    errors: list[BaseException] = []

    def go() -> None:
        try:
            enter(netns_path)
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
