"""What stages note of their calls, in every arm alike: when, how long, how much CPU, which rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Call:
    """One call of a stage.

    Attributes:
        began_s: on the wall's clock.
        took_s, cpu_s: of it.
        items: that it worked on.
        ids: of them, where they were noted.
    """

    pid: int
    stage: str
    began_s: float
    took_s: float
    cpu_s: float
    items: int
    ids: tuple[int, ...]


class Diary:
    """A file that many processes append to, one write a call. Writes by O_APPEND do not tear each other.

    Args:
        path: of it; empty: nothing is noted.
        stage: whose calls.
    """

    def __init__(self, path: str, stage: str) -> None:
        self._stage = stage
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(path, flags, 0o644) if path else -1
        self._began_s = self._clock_s = self._cpu_s = 0.0

    def begin(self) -> None:
        """A call begins."""
        self._began_s, self._clock_s, self._cpu_s = time.time(), time.perf_counter(), time.process_time()

    def end(self, items: int, ids: Iterable[int] = ()) -> None:
        """It is over."""
        if self._file < 0:
            return
        took_s, cpu_s = time.perf_counter() - self._clock_s, time.process_time() - self._cpu_s
        told = ",".join(str(int(one)) for one in ids)
        line = f"{os.getpid()} {self._stage} {self._began_s:.6f} {took_s:.6f} {cpu_s:.6f} {items} {told}\n"
        os.write(self._file, line.encode())

    def close(self) -> None:
        """No more."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def calls(path: Path) -> list[Call]:
    """All that was noted. A process that was killed amid a write has left half a line: passed over."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        fields = line.split(" ")
        if len(fields) != 7 or not fields[0].isdigit():
            continue
        ids = tuple(int(one) for one in fields[6].split(",") if one)
        if (items := int(fields[5])) == len(ids) or not ids:
            times = [float(one) for one in fields[2:5]]
            found.append(Call(int(fields[0]), fields[1], times[0], times[1], times[2], items, ids))
    return found


def row_s(noted: Sequence[Call], stage: str) -> float:
    """Mean seconds of one process of a stage for one of its items; nan: it was never called."""
    mine = [call for call in noted if call.stage == stage]
    items = sum(call.items for call in mine)
    return sum(call.took_s for call in mine) / items if items else float("nan")
