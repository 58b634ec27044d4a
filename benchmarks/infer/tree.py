"""The processes of one run: everything that inherited its token, wherever it was forked or re-parented to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.network.arms import QUIET, PartError

TOKEN = "SHOESTRING_BENCH_RUN"
SAMPLE_S = 1.0
TICKS = os.sysconf("SC_CLK_TCK")
ROLES = (
    (r"coordinator\.log", "coordinator"), (r"w\d+\.log", "worker"), (r"w\d+-nursery\.log", "nursery"),
    (r"w\d+-load-\d+\.log", "loader"), (r"w\d+-write-\d+\.log", "writer"),
    (r"w\d+-stage-.+-\d+\.log", "predictor"),
)  # fmt: skip
LONELY = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""In front of a command: it runs in a network namespace that has nothing but `lo`."""


@dataclass(frozen=True)
class Seen:
    """A look at all processes.

    Attributes:
        pss_bytes: resident, what is shared divided among those that share it.
        cpu_s: so far, of those too that have ended since an earlier look; `by_role`: the same by role.
        count: processes.
    """

    at_s: float
    pss_bytes: int
    cpu_s: float
    count: int
    by_role: dict[str, float]


@dataclass
class Tree:
    """Processes by token.

    Attributes:
        token: in the environment of all of them.
        seen: looks, while `watch` does.
    """

    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    seen: list[Seen] = field(default_factory=list)
    spent_s: dict[int, float] = field(default_factory=dict)
    roles: dict[int, str] = field(default_factory=dict)

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of the run's first process."""
        return {
            **os.environ, **QUIET, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0", **(more or {}), TOKEN: self.token,
        }  # fmt: skip

    def pids(self) -> list[int]:
        """Alive now."""
        wanted = f"{TOKEN}={self.token}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def look(self) -> Seen:
        """Memory and CPU of all."""
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(OSError, IndexError, ValueError):
                self.spent_s[pid] = cpu_s(pid)
            if pid not in self.roles or not self.roles[pid]:
                self.roles[pid] = role(pid)
        by_role: dict[str, float] = {}
        for pid, spent in self.spent_s.items():
            by_role[self.roles[pid]] = spent + (
                by_role[self.roles[pid]] if self.roles[pid] in by_role else 0.0
            )
        seen = Seen(time.time(), sum(map(pss_bytes, pids)), sum(self.spent_s.values()), len(pids), by_role)
        self.seen.append(seen)
        return seen

    def kill(self) -> int:
        """SIGKILL to all that are left; how many there were."""
        killed = 0
        for _ in range(50):
            if not (left := self.pids()):
                break
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            time.sleep(0.05)
        return killed

    @contextlib.contextmanager
    def watched(self, every_s: float = SAMPLE_S) -> Any:
        """Look every so often while the block runs."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                self.look()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()


@dataclass(frozen=True)
class Finished:
    """A run that ended well: when, how long, its last line of JSON, memory, CPU."""

    began_s: float
    took_s: float
    said: dict[str, Any]
    peak_bytes: int
    cpu_s: float
    seen: tuple[Seen, ...]


def run_child(
    words: Sequence[str],
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    every_s: float = SAMPLE_S,
) -> Finished:
    """Run a command, in a session of its own, to its end; nothing of it is left afterwards.

    Raises:
        PartError: it failed, or took too long.
    """
    tree = Tree()
    began_s = time.time()
    process = subprocess.Popen(
        list(words), cwd=ROOT, env=tree.environment(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        with tree.watched(every_s):
            said, _ = process.communicate(timeout=timeout_s)
        took_s = time.time() - began_s
    except subprocess.TimeoutExpired as late:
        raise PartError(f"{' '.join(words)[:300]} took longer than {timeout_s:g} s", "run it alone") from late
    finally:
        tree.kill()
        process.wait()
    if process.returncode:
        raise PartError(
            f"{' '.join(words)[:300]} ended with {process.returncode}: {said[-3000:]}", "see above"
        )
    lines = [line for line in said.splitlines() if line.startswith("{")]
    peak = max((seen.pss_bytes for seen in tree.seen), default=0)
    spent = max((seen.cpu_s for seen in tree.seen), default=0.0)
    found = json.loads(lines[-1]) if lines else {}
    return Finished(began_s, took_s, found, peak, spent, tuple(tree.seen))


def pss_bytes(pid: int) -> int:
    """Resident bytes of a process, what it shares divided among those that share it; 0: it is gone."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def cpu_s(pid: int) -> float:
    """User and system seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def role(pid: int) -> str:
    """What a process of a job of ours is, by the log that it writes to.

    Returns:
        `coordinator`, `worker`, `nursery`, `loader`, `predictor`, `writer`, or empty.
    """
    with contextlib.suppress(OSError):
        name = Path(os.readlink(f"/proc/{pid}/fd/1")).name
        for pattern, found in ROLES:
            if re.fullmatch(pattern, name):
                return found
    return ""


def command(pid: int) -> str:
    """The command line of a process; empty: it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""
