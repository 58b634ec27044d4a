"""The stages of our arms, as a user would write them; the other arms call the same functions."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.infer.diary import Diary
from benchmarks.infer.grind import Grind
from benchmarks.infer.server import Client

GROUPS, HOME = "groups", "home"
"""Files of a folder of places: the `cgroup.procs` of each place, a line each, and of where a process was."""


class Place:
    """One CPU quota of a folder of places, held as long as this process lives (or until `leave`).

    Args:
        folder: see GROUPS; empty: there are no quotas.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self.number = self._lock = -1
        if not folder:
            return
        groups = (self._folder / GROUPS).read_text().split()
        deadline_s = time.monotonic() + 60.0
        while self.number < 0 and time.monotonic() < deadline_s:
            self._take(groups)
            if self.number < 0:
                time.sleep(0.05)
        if self.number < 0:
            raise RuntimeError(f"all {len(groups)} places of {folder} are taken")
        _move(groups[self.number])

    def leave(self) -> None:
        """Back to where it was; somebody else may have the place."""
        if self.number >= 0:
            _move((self._folder / HOME).read_text().strip())
            os.close(self._lock)
            self.number = -1

    def _take(self, groups: list[str]) -> None:
        for number in range(len(groups)):
            lock = os.open(self._folder / f"place{number}", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            self.number, self._lock = number, lock
            return


def _move(group: str) -> None:
    Path(group).write_text("0")


class Compute:
    """A value for each row at the row's cost; with a place, at its speed."""

    def __init__(self, diary: str = "", places: str = "", ids: bool = False) -> None:
        self._words, self._with_ids = (diary, places), ids

    def setup(self, context: Any) -> None:
        """In the process that computes."""
        self._grind, self._diary = Grind(), Diary(self._words[0], "compute")
        self._place = Place(self._words[1])

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        values = self._grind(batch["id"], batch["cost"])
        self._diary.end(len(values), batch["id"] if self._with_ids else ())
        return {"value": values}

    def close(self) -> None:
        """Its place is free."""
        self._place.leave()
        self._diary.close()


LEAK_BYTES = 256 << 20


class Wait:
    """A value for each row after a wait: for jobs that are killed, not timed.

    Args:
        leak: a file; the process that finds it there takes it away, and LEAK_BYTES that it never gives back.
            Empty: none.
    """

    def __init__(self, diary: str = "", row_s: float = 0.002, leak: str = "") -> None:
        self._path, self._row_s, self._leak = diary, row_s, leak
        self._kept: list[Any] = []

    @staticmethod
    def value(ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of rows."""
        return ids * 2.0

    def setup(self, context: Any) -> None:
        """In the process that computes."""
        self._diary = Diary(self._path, "wait")

    def __call__(self, batch: Any) -> dict[str, Any]:
        ids = np.asarray(batch["id"])
        self._diary.begin()
        self._diary.end(len(ids), ids)  # before the work: what a kill cuts short was begun
        if self._leak:
            with contextlib.suppress(FileNotFoundError):  # of those that see it, one removes it
                os.unlink(self._leak)
                self._kept.append(np.ones(LEAK_BYTES, np.uint8))
        time.sleep(self._row_s * len(ids))
        return {"value": self.value(ids)}


class Double:
    """Next to nothing for each row."""

    def __init__(self, diary: str = "") -> None:
        self._path = diary

    def setup(self, context: Any) -> None:
        """In the process that computes."""
        self._diary = Diary(self._path, "double")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        doubled = batch["x"] * np.float32(2)
        self._diary.end(len(doubled))
        return {"value": doubled}


class Fetch:
    """Rows of the store, by id."""

    def __init__(self, port: int, diary: str = "") -> None:
        self._port, self._path = port, diary

    def setup(self, context: Any) -> None:
        """One connection a process."""
        self._client, self._diary = Client(self._port), Diary(self._path, "fetch")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        rows = self._client.get(np.asarray(batch["id"]))
        self._diary.end(len(rows))
        return {"rows": rows}

    def close(self) -> None:
        """Hang up."""
        self._client.close()


class Put:
    """The value of each row to the store."""

    def __init__(self, port: int, diary: str = "") -> None:
        self._port, self._path = port, diary

    def setup(self, context: Any) -> None:
        """One connection a process."""
        self._client, self._diary = Client(self._port), Diary(self._path, "put")

    def __call__(self, batch: Any) -> dict[str, Any]:
        self._diary.begin()
        values = np.asarray(batch["value"], np.float32)
        self._client.put(np.asarray(batch["id"]), values)
        self._diary.end(len(values))
        return {"stored": values}

    def close(self) -> None:
        """Hang up."""
        self._client.close()
