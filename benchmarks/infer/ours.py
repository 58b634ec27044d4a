"""Runs of ours, and what is read from their records."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.infer.check import last_change_s
from benchmarks.infer.diary import Call, calls
from benchmarks.infer.tree import SAMPLE_S, Finished, run_child
from shoestring.base.record import read_events

WARM = {"trial": {"rows": 20}}
WITH_MODEL = ("Predict", "Detect", "Classify", "Both")


@dataclass(frozen=True)
class Ran:
    """One run of any arm.

    Attributes:
        work_s: from when every stage has begun its first call (a trial's left out) until the last file of
            output was there, for all rows: those that the first stage has done by then count as if they had
            taken as long as the others.
        start_s: from the start of the command until then.
        took_s: the whole command.
        peak_bytes: of all processes together (PSS).
        calls: of stages, in `work_s`.
        record: events of the run, of ours.
    """

    work_s: float
    start_s: float
    took_s: float
    peak_bytes: int
    cpu_s: float
    calls: tuple[Call, ...]
    record: tuple[dict[str, Any], ...] = ()
    finished: Finished | None = None

    def row(self, arm: str, **more: Any) -> dict[str, Any]:
        """For the record of the benchmark."""
        return {
            "arm": arm, "work_s": round(self.work_s, 3), "start_s": round(self.start_s, 3),
            "took_s": round(self.took_s, 3), "peak_mb": round(self.peak_bytes / 1e6),
            "cpu_s": round(self.cpu_s, 2), **more,
        }  # fmt: skip


def stage(name: str, **settings: Any) -> dict[str, Any]:
    """Settings of one of our stages: `name` is a class of `stages` or `model_stages`."""
    module = "model_stages" if name in WITH_MODEL else "stages"
    return {"name": name.lower(), "uses": f"benchmarks.infer.{module}:{name}", **settings}


def config(source: Path, sink: Path, stages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Settings of a job."""
    return {
        "source": {"files": [str(source / "*.parquet")]}, "sink": {"path": str(sink)}, "stages": stages,
        **WARM, **more,
    }  # fmt: skip


def write_config(settings: dict[str, Any], folder: Path) -> Path:
    """As a file for `benchmarks.infer.job`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    path.write_text(json.dumps(settings))
    return path


def words(settings: dict[str, Any], folder: Path, *flags: str) -> list[str]:
    """The command of a job of ours in this folder."""
    return [
        sys.executable, "-m", "benchmarks.infer.job", str(write_config(settings, folder)),
        str(folder / "runs" / "job"), *flags,
    ]  # fmt: skip


def run(
    settings: dict[str, Any],
    folder: Path,
    diary: Path,
    timeout_s: float,
    *flags: str,
    every_s: float = SAMPLE_S,
) -> Ran:
    """A job of ours from start to end.

    Args:
        folder: empty, of this run.
        diary: that its stages write.

    Raises:
        PartError: it failed.
    """
    done = run_child(words(settings, folder, *flags), timeout_s, every_s=every_s)
    record = events(folder)
    planned_s = max(event["wall_s"] for event in record if event["kind"] == "plan")
    return ran(done, calls(diary), Path(settings["sink"]["path"]), planned_s, record)


def ran(
    done: Finished,
    noted: list[Call],
    output: Path,
    after_s: float = 0.0,
    record: tuple[dict[str, Any], ...] = (),
) -> Ran:
    """Put together what is known of a run of any arm.

    Args:
        after_s: calls before that are of a trial.
    """
    working = tuple(call for call in noted if call.began_s >= after_s)
    up_s, share = begin(working)
    return Ran(
        work_s=(last_change_s(output) - up_s) / share,
        start_s=up_s - done.began_s,
        took_s=done.took_s,
        peak_bytes=done.peak_bytes,
        cpu_s=done.cpu_s,
        calls=working,
        record=record,
        finished=done,
    )


def begin(noted: Sequence[Call]) -> tuple[float, float]:
    """When all stages were up, and the share of the items that the first stage had still to begin then."""
    firsts: dict[str, float] = {}
    for call in sorted(noted, key=lambda one: one.began_s):
        firsts.setdefault(call.stage, call.began_s)
    if not firsts:
        return math.nan, math.nan
    up_s = max(firsts.values())
    mine = [call for call in noted if call.stage == next(iter(firsts))]
    return up_s, sum(call.items for call in mine if call.began_s >= up_s) / sum(call.items for call in mine)


def events(folder: Path) -> tuple[dict[str, Any], ...]:
    """The record of the job in this folder; none: it has not begun one."""
    path = folder / "runs" / "job" / "events.jsonl"
    return tuple(read_events(path).events) if path.exists() else ()
