"""Runs a part of a test in a forked process of its own.

For what leaves something behind in a process, as threads that multiply matrices do: MKL keeps a list of the
threads that have used it, and a child that is forked once one of them has ended may walk it for ever.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

SAID = "said-apart"


def begin_apart(folder: Path, body: Callable[[], None]) -> int:
    """Begin it; gives the process, which is the caller's to wait for with `end_apart`."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            (folder / SAID).write_text(traceback.format_exc())
        finally:
            os._exit(code)
    return child


def end_apart(folder: Path, child: int) -> str:
    """Wait for its end; gives what it raised, or an empty string."""
    status = None
    try:
        _, status = os.waitpid(child, 0)
    finally:
        if status is None:  # the test was given up
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    said = folder / SAID
    return said.read_text() if said.exists() else f"ended with status {status}"


def apart(folder: Path, body: Callable[[], None]) -> str:
    """Run it to its end; gives what it raised, or an empty string."""
    return end_apart(folder, begin_apart(folder, body))
