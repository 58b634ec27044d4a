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


def apart(folder: Path, body: Callable[[], None]) -> str:
    """Run it; gives what it raised, or an empty string."""
    said = folder / "said-apart"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            said.write_text(traceback.format_exc())
        finally:
            os._exit(code)
    status = None
    try:
        _, status = os.waitpid(child, 0)
    finally:
        if status is None:  # the test was given up
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return ""
    return said.read_text() if said.exists() else f"ended with status {status}"
