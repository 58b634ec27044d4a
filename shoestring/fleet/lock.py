"""The run lock: one supervisor a run (source: ours)."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType

from shoestring.base.errors import RunError


class RunLock:
    """Holds `run_dir/lock` for as long as this process lives, however it ends.

    Raises (on entering):
        RunError: another process holds it.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "lock"
        self._fd = -1

    def __enter__(self) -> RunLock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise RunError(
                f"the run {self._path.parent} is in progress (pid {holder or 'unknown'})",
                "wait for it, or stop it with Ctrl-C where it runs",
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it would let two processes lock two files of one name.
        os.close(self._fd)
