"""Becomes a process of a host and then the command (source: ours; prctl(2)).

A program of its own, because code that runs between fork and exec in a copy of a process with threads may
hang. Standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
CANNOT_START = 127
"""As a shell ends when there is no such command."""


def main(parent: int, processes: str, argv: list[str]) -> int:
    """Does not return where the command can be started.

    Args:
        parent: the lab's process; with it (the thread that started us, to be exact) we die.
        processes: the file that lists the processes of the host's cgroup; empty: it has none.
    """
    if processes:
        with open(processes, "w") as file:
            file.write("0")
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the line above took effect
        return CANNOT_START
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        print(f"cannot start {argv[0]!r}: {error.strerror}", file=sys.stderr)
        return CANNOT_START


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
