"""Processes on hosts: how they are started, followed and ended (source: ours)."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from benchmarks.lab.config import LabError
from benchmarks.lab.namespaces import inside
from shoestring.base.clock import Clock

Process = subprocess.Popen[bytes]
OnLine = Callable[[int, str], None]
GRACE_S = 2.0
LAST_READS = 32
TIMED_OUT = 124
"""As timeout(1) ends."""


def script(name: str) -> list[str]:
    """A helper program of the lab: standard library alone, no site packages, up in some 20 ms."""
    return [sys.executable, "-I", "-S", str(Path(__file__).with_name(f"{name}.py"))]


def start(
    namespace: int,
    processes: Path | None,
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: Path | None = None,
    stdout: int | IO[bytes] | None = None,
    keep_fds: Sequence[int] = (),
) -> Process:
    """Start a command on a host, in a session of its own; it dies with the thread that starts it, the lab's.

    Args:
        namespace: descriptor of the host's namespace.
        processes: the file that lists its cgroup's processes; None: it has no cgroup.
        stdout: as for Popen, and for stderr too; None: ours.

    Raises:
        LabError: it cannot be started. A command that is there and is no program ends with 127 instead.
    """
    paths = [environment["PATH"]] if "PATH" in environment else []
    if "/" not in argv[0] and shutil.which(argv[0], path=paths[0] if paths else None) is None:
        raise LabError(f"cannot start {argv[0]!r}: there is no such command", "check its name and the PATH")
    group = "" if processes is None else str(processes)
    try:
        with inside(namespace):  # a child begins where the thread that forks it is
            return subprocess.Popen(
                [*script("launch"), str(os.getpid()), group, *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=None if stdout is None else subprocess.STDOUT,
                cwd=cwd,
                env=dict(environment),
                pass_fds=keep_fds,
                start_new_session=True,
            )
    except OSError as error:
        raise LabError(f"cannot start {argv[0]!r}: {error}", "check the command and its folder") from error


def end(processes: Sequence[Process], clock: Clock, grace_s: float = GRACE_S) -> None:
    """End these and what they started in their sessions: SIGTERM, and SIGKILL `grace_s` later."""
    _signal(processes, signal.SIGTERM)
    until_s = clock.now() + grace_s
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until_s - clock.now()))
    _signal(processes, signal.SIGKILL)
    for process in processes:
        process.wait()


def _signal(processes: Sequence[Process], number: int) -> None:
    # Only of those not waited for yet: the number of the others may be somebody else's by now.
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)


@dataclass
class Followed:
    """What came of the processes of one command.

    Attributes:
        first: exit code of the first that failed (-N: signal N); 124 after a time-out; 0.
        why: what ended the command early; empty when every process ended with 0.
    """

    outputs: list[bytearray] = field(default_factory=list)
    first: int = 0
    why: str = ""


def follow(
    ranks: Sequence[Process],
    relay: Process | None,
    timeout_s: float,
    on_line: OnLine | None,
    clock: Clock,
    grace_s: float,
) -> Followed:
    """Read what ranks write until all have ended, or one fails or time is up; then all have ended.

    Args:
        ranks: started with their output in a pipe and in sessions of their own.
        on_line: gets (rank, line without its end) as lines come.

    Raises:
        LabError: the relay has died, and with it the network.
    """
    followed = Followed([bytearray() for _ in ranks])
    until_s = clock.now() + timeout_s
    living = set(range(len(ranks)))
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as descriptors:
        for rank, process in enumerate(ranks):
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ, ("output", rank))
            _watch(process, selector, descriptors, ("end", rank))
        if relay is not None:
            _watch(relay, selector, descriptors, ("relay", 0))
        try:
            while living and not followed.why:
                left_s = until_s - clock.now()
                if left_s <= 0:
                    followed.first, followed.why = TIMED_OUT, f"not done after {timeout_s:g} s"
                for key, _ in selector.select(max(0.0, left_s)):
                    what, rank = key.data
                    if what == "relay":
                        raise LabError("the relay between the hosts died", "build the lab anew")
                    if what == "output":
                        if not _read(ranks[rank], followed.outputs[rank], rank, on_line):
                            selector.unregister(key.fileobj)
                    else:
                        selector.unregister(key.fileobj)
                        living.discard(rank)
                        # Its children, while its number is still its own.
                        _signal([ranks[rank]], signal.SIGKILL)
                        code = ranks[rank].wait()
                        if code != 0 and not followed.why:
                            followed.first, followed.why = code, f"rank {rank} ended with {code}"
        finally:
            end([ranks[rank] for rank in sorted(living)], clock, grace_s)
            for rank, process in enumerate(ranks):
                # What the pipe still holds; a daemon that a rank left may go on writing into it.
                for _ in range(LAST_READS):
                    if not _read(process, followed.outputs[rank], rank, on_line, last=True):
                        break
                assert process.stdout is not None
                process.stdout.close()
    return followed


def _watch(
    process: Process,
    selector: selectors.BaseSelector,
    descriptors: contextlib.ExitStack,
    data: tuple[str, int],
) -> None:
    descriptor = os.pidfd_open(process.pid)
    descriptors.callback(os.close, descriptor)
    selector.register(descriptor, selectors.EVENT_READ, data)


def _read(process: Process, output: bytearray, rank: int, on_line: OnLine | None, last: bool = False) -> bool:
    """Take what is there; False at the end of the output, or, for the last look, when nothing is left."""
    assert process.stdout is not None
    shown = output.rfind(b"\n") + 1
    try:
        data = os.read(process.stdout.fileno(), 2**16)
    except BlockingIOError:
        data = b""
        if not last:
            return True
    output += data
    if on_line is not None:
        whole = len(output) if last and not data else output.rfind(b"\n") + 1
        for line in bytes(output[shown:whole]).decode(errors="replace").splitlines():
            on_line(rank, line)
    return bool(data)
