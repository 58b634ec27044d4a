"""The same job on ours, on Ray Data and on plain multiprocessing; one run each, checked for equal work."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.infer import ours
from benchmarks.infer.check import Same
from benchmarks.infer.diary import calls
from benchmarks.infer.ours import Ran, ran
from benchmarks.infer.stages import GROUPS, HOME
from benchmarks.infer.tree import LONELY, SAMPLE_S, run_child
from benchmarks.lab import Lab, LabConfig
from benchmarks.lab.quotas import find_hierarchy
from benchmarks.network.arms import PEERS

SPACE = ROOT / ".bench" / "infer-work"
"""Inputs, outputs and runs, removed when a turn is over."""
STORE_BYTES = 512 << 20
"""Of Ray's object store: several times what is in it at once."""


@dataclass(frozen=True)
class Job:
    """Rows, what is done with them, and where.

    Attributes:
        source: folder of parquet files.
        rows: in all.
        stage: a class of `stages`.
        batch: items of a call, where the arm is told.
        processes: that compute; 0: ours decides, the others have as many as cores.
        places: folder of CPU quotas; empty: none.
        same: what every arm's output is held to.
    """

    source: Path
    rows: int
    stage: str
    batch: int
    same: Same
    processes: int = 0
    places: str = ""

    def stage_options(self, diary: Path) -> dict[str, Any]:
        """Of the stage's class."""
        return {"diary": str(diary), **({"places": self.places} if self.places else {})}


def run_ours(job: Job, timeout_s: float, how: dict[str, Any], every_s: float = SAMPLE_S) -> Ran:
    """Ours. `how` is laid over the settings, its `stage` over those of the stage; `flags` are of the job."""
    with folder() as place:
        diary = place / "diary"
        more = {**how}
        stage = ours.stage(
            job.stage, options=job.stage_options(diary), processes=job.processes, **more.pop("stage", {})
        )
        flags = more.pop("flags", [])
        settings = ours.config(job.source, place / "out", [stage], **more)
        found = ours.run(settings, place, diary, timeout_s, *flags, every_s=every_s)
        job.same.check(place / "out")
        return found


def run_ray(job: Job, timeout_s: float, how: dict[str, Any], every_s: float = SAMPLE_S) -> Ran:
    """Ray Data; `how` has batch, blocks, cpus, actors, actor_cpus, in_flight."""
    with folder() as place:
        # Unix sockets of Ray have long names: its folder has to have a short one.
        with tempfile.TemporaryDirectory(prefix="r") as temp:
            settings = {
                "source": str(job.source), "sink": str(place / "out"), "stage": job.stage, "temp": temp,
                "options": job.stage_options(place / "diary"), "store_bytes": STORE_BYTES, "batch": job.batch,
                "blocks": 0, "v2": False, "repartition": 0, "cpus": 4,
                "actors": job.processes or 2, "actor_cpus": 1, "in_flight": 0,
                "checkpoint": "", "errors": 0, **how,
            }  # fmt: skip
            (place / "ray.json").write_text(json.dumps(settings))
            command = [*LONELY, str(PEERS), "-m", "benchmarks.infer.ray_data", str(place / "ray.json")]
            done = run_child(command, timeout_s, every_s=every_s)
        return _finished(job, done, place)


def run_pool(job: Job, timeout_s: float, how: dict[str, Any], every_s: float = SAMPLE_S) -> Ran:
    """Plain multiprocessing; `how` has chunk (rows of a task; 0: a file) and batch."""
    with folder() as place:
        settings = {
            "source": str(job.source), "sink": str(place / "out"), "stage": job.stage, "batch": job.batch,
            "options": job.stage_options(place / "diary"), "processes": job.processes or 2, "chunk": 0, **how,
        }  # fmt: skip
        (place / "pool.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "benchmarks.infer.loops", "pool", str(place / "pool.json")]
        done = run_child(command, timeout_s, every_s=every_s)
        return _finished(job, done, place)


RUNNERS = {"ours": run_ours, "ray": run_ray, "pool": run_pool}


def _finished(job: Job, done: Any, place: Path) -> Ran:
    found = ran(done, calls(place / "diary"), place / "out")
    job.same.check(place / "out")
    return found


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A fresh one on the repository's disk, gone afterwards."""
    SPACE.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=SPACE))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def quotas(cores: Sequence[float]) -> Iterator[str]:
    """A folder of places (see `stages.Place`) with so many cores each, by cgroups."""
    hierarchy = find_hierarchy(Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text())
    with Lab(LabConfig(hosts=len(cores), cpu=tuple(cores))) as lab, folder() as place:
        assert hierarchy is not None, "the lab would have failed"
        groups = [
            hierarchy.root / lab.name / f"host{number}" / "cgroup.procs" for number in range(len(cores))
        ]
        (place / GROUPS).write_text("\n".join(map(str, groups)))
        (place / HOME).write_text(str(hierarchy.root / "cgroup.procs"))
        yield str(place)


def peers_ready() -> None:
    """The environment of the peers."""
    subprocess.run([str(ROOT / "scripts/make-peers-venv")], cwd=ROOT, check=True)
