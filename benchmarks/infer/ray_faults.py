"""Part `ray-faults`: the kills of `faults` on Ray Data, its retries as they come and its checkpointing on.

Whose kill stands for which of ours is in `AS_OURS`. `loader`, `predictor`, `writer` and `all` are the same
work in both. A worker of ours, with its nursery, is what a node with its raylet is there: what starts
processes and holds rows in memory. The driver does what our coordinator does and is what a person has
started, so that it also stands for our supervisor. The global control store keeps what our ledger's database
keeps. `hang` and `leak` are not tried: the job on Ray Data sets neither a time-out of a call nor a bound of
memory of an actor. Runs of Ray's that do not end are counted, and are no failure of this benchmark.

There are WHOM roles in turn: `--rounds 140` is 20 runs of each, `--more` adds to those that are recorded.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, commit, table
from benchmarks.infer import data, faults
from benchmarks.infer.arms import STORE_BYTES, folder, peers_ready
from benchmarks.infer.check import ids_of, wrong_values
from benchmarks.infer.diary import calls
from benchmarks.infer.stages import Wait
from benchmarks.infer.tree import LONELY, Tree, command
from benchmarks.network.arms import PEERS, PartError

WHOM = {
    "loader": "ray::ReadParquet", "predictor": "ray::MapWorker", "writer": "ray::Write",
    "raylet": "/raylet/raylet", "gcs": "/gcs/gcs_server", "driver": "benchmarks.infer.ray_data", "all": "",
}  # fmt: skip
"""Role -> what its command line has."""
AS_OURS: dict[str, tuple[str, ...]] = {
    "loader": ("loader",), "predictor": ("predictor",), "writer": ("writer",),
    "raylet": ("worker", "nursery"), "gcs": ("database",), "driver": ("coordinator", "supervisor"),
    "all": ("all",),
}  # fmt: skip
"""Role here -> kinds of `faults.WHOM`."""
BLOCKS = 24
FULL, QUICK = 70, 2
TIMEOUT_S = 120.0
STARTS = 4
Row = dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """See `faults.Kill`. A role that comes and goes (a task) is killed when it is next seen; a loader, which
    is gone before the first row is worked on, at its first sight."""

    whom: str
    share: float

    @classmethod
    def draw(cls, number: int) -> Kill:
        """The kill of this number."""
        whom = list(WHOM)[number % len(WHOM)]
        return cls(whom, -1.0 if whom == "loader" else random.Random(1000 + number).uniform(0.0, 0.95))


def measure(quick: bool, count: int, first: int) -> dict[str, Any]:
    """Kills number `first` to `first + count - 1`."""
    peers_ready()
    runs: list[Row] = []
    failed: dict[str, str] = {}
    with folder() as source:
        data.write_ids(source / "in", faults.ROWS, faults.FILES)
        for number in range(first, first + count):
            kill = Kill.draw(number)
            try:
                runs.append({"number": number, **one(kill, source / "in")})
            except PartError as error:
                failed[str(number)] = str(error)[-1500:]
                runs.append({"number": number, "whom": kill.whom, "failed": True})
            print(f"  {runs[-1]}" + (f" {failed[str(number)]}" if str(number) in failed else ""), flush=True)
    _show(runs)
    mapped = {kind for kinds in AS_OURS.values() for kind in kinds}
    return {
        "runs": runs, "failed": failed, "rows": faults.ROWS, "blocks": BLOCKS, "commit": commit()[:8],
        "as_ours": AS_OURS, "not_tried": [kind for kind in faults.WHOM if kind not in mapped],
    }  # fmt: skip


def one(kill: Kill, source: Path) -> Row:
    """One job, one kill; started again, as it is, until it ends well.

    Raises:
        PartError: it has not come to an end.
    """
    with folder() as place, tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as temp:
        diary = place / "diary"
        settings = {
            "source": str(source), "sink": str(place / "out"), "stage": "Wait", "temp": temp,
            "options": {"diary": str(diary), "row_s": faults.ROW_S}, "store_bytes": STORE_BYTES,
            "batch": faults.BATCH, "blocks": BLOCKS, "v2": False, "repartition": 0, "cpus": 4,
            "actors": 2, "actor_cpus": 1, "in_flight": 0,
            "checkpoint": str(place / "checkpoint"), "errors": 0,
        }  # fmt: skip
        (place / "checkpoint").mkdir()
        (place / "ray.json").write_text(json.dumps(settings))
        began_s, starts, hit, said = time.monotonic(), 0, False, ""
        while True:
            starts += 1
            code, now_hit, said = _start(place, diary, None if hit else kill)
            hit = hit or now_hit
            if code == 0 or starts == STARTS:
                break
        if code != 0:
            raise PartError(
                f"{kill}: started {starts} times, ended with {code}: {said[-1500:]}", "look at it"
            )
        ids = ids_of(place / "out", faults.ROWS)
        begun = sum(call.items for call in calls(diary))
        return {
            "whom": kill.whom, "share": round(kill.share, 3), "hit": hit, "starts": starts,
            "took_s": round(time.monotonic() - began_s, 1), "begun": begun, "redone": begun - faults.ROWS,
            **ids.fields(), "wrong": wrong_values(place / "out", Wait.value),
        }  # fmt: skip


def _start(place: Path, diary: Path, kill: Kill | None) -> tuple[int, bool, str]:
    tree, log = Tree(), place / "said"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*LONELY, str(PEERS), "-m", "benchmarks.infer.ray_data", str(place / "ray.json")], cwd=ROOT,
            env=tree.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    hit = False
    try:
        if kill is not None:
            hit = _kill(kill, process, tree, diary)
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        code = -1000  # it hangs: a person ends it and starts it again
    finally:
        tree.kill()
        process.wait()
    return code, hit, log.read_text(errors="replace")


def _kill(kill: Kill, process: subprocess.Popen[bytes], tree: Tree, diary: Path) -> bool:
    deadline_s = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if kill.share < 0 or faults.begun(diary) > max(1, kill.share * faults.ROWS):
            break
        time.sleep(faults.LOOK_S)
    while process.poll() is None and time.monotonic() < deadline_s:
        if pids := _of(kill.whom, tree):
            for pid in pids if kill.whom == "all" else pids[-1:]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return False
            return True
        time.sleep(faults.LOOK_S)
    return False


def _of(whom: str, tree: Tree) -> list[int]:
    return sorted(pid for pid in tree.pids() if WHOM[whom] in command(pid))


def figures(runs: list[Row]) -> dict[str, Any]:
    """As `faults.figures`, of Ray Data."""
    if not runs:
        return {}
    ended = [run for run in runs if "failed" not in run]
    hits = [run for run in ended if run["hit"]]
    found: dict[str, Any] = {
        "ray_fault_runs": len(hits),
        "ray_fault_runs_failed": len(runs) - len(ended),
        "ray_missing_ids": sum(run["missing"] for run in ended),
        "ray_duplicate_ids": sum(run["duplicate"] + run["foreign"] for run in ended),
    }
    if checked := [run["wrong"] for run in ended if "wrong" in run]:
        found["ray_wrong_values"] = sum(checked)
    if hits:
        redone = sum(run["redone"] for run in hits)
        found["ray_redone_share"] = round(redone / (faults.ROWS * len(hits)), 4)
    return found


def _show(runs: list[Row]) -> None:
    rows = []
    for whom, ours in AS_OURS.items():
        own = [run for run in runs if run["whom"] == whom]
        mine = [run for run in own if "failed" not in run and run["hit"]]
        lost = sum("failed" in run for run in own)
        if mine or lost:
            sums = [str(sum(run[key] for run in mine)) for key in ("missing", "duplicate", "wrong", "redone")]
            starts = max((run["starts"] for run in mine), default=0)
            rows.append([whom, " and ".join(ours), str(len(mine)), str(lost), *sums, str(starts)])
    sums = ["missing", "doubled", "wrong", "redone rows"]
    table(["killed in Ray Data", "as ours", "runs", "no end", *sums, "starts"], rows)
