"""Part `faults`: kills at seeded points of small jobs, ours; what is missing, doubled, done again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, commit, table
from benchmarks.infer import data, ours, postgres
from benchmarks.infer.arms import folder
from benchmarks.infer.check import ids_of
from benchmarks.infer.diary import calls
from benchmarks.infer.tree import Tree, role
from benchmarks.network.arms import PartError

WHOM = ("loader", "predictor", "writer", "nursery", "worker", "coordinator", "supervisor", "all", "database")
ROWS, FILES, BATCH, SHARD = 600, 4, 10, 25
ROW_S = 0.005
"""Of a process that computes, of which there are two: a second and a half of work."""
TIMEOUT_S = 90.0
STARTS = 4
"""Of a job at most: what a person would do whose job has died."""
LOOK_S = 0.004
FULL, QUICK = 216, 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """What is done to a job.

    Attributes:
        whom: a role; `all`: every process of the job; `database`: the server that has the ledger.
        share: of the rows that are begun by then, in [0, 1); and `later_s` after that.
    """

    whom: str
    share: float
    later_s: float

    @classmethod
    def draw(cls, number: int) -> Kill:
        """The kill of this number: roles in turn, the moment from a seed."""
        rng = random.Random(number)
        return cls(WHOM[number % len(WHOM)], rng.uniform(0.0, 0.98), rng.uniform(0.0, 0.05))


def measure(quick: bool, count: int, first: int) -> dict[str, Any]:
    """Kills number `first` to `first + count - 1`."""
    runs: list[Row] = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        database = stack.enter_context(postgres.server()) if postgres.available() else None
        source = stack.enter_context(folder())
        data.write_ids(source / "in", ROWS, FILES)
        for number in range(first, first + count):
            kill = Kill.draw(number)
            if kill.whom == "database" and database is None:
                failed[str(number)] = "there is no PostgreSQL here"
                continue
            try:
                runs.append({"number": number, **one(kill, number, source / "in", database)})
            except PartError as error:
                failed[str(number)] = str(error)[-1500:]
                runs.append({"number": number, "whom": kill.whom, "failed": True})
            print(f"  {runs[-1]}" + (f" {failed[str(number)]}" if str(number) in failed else ""), flush=True)
    _show(runs)
    return {
        "runs": runs, "failed": failed, "rows": ROWS, "shard_rows": SHARD, "batch": BATCH, "row_s": ROW_S,
        "commit": commit()[:8],
    }  # fmt: skip


def one(kill: Kill, number: int, source: Path, database: postgres.Server | None) -> Row:
    """One job, one kill.

    Raises:
        PartError: it has not come to an end, or its output cannot be read.
    """
    with folder() as place:
        diary = place / "diary"
        stage = ours.stage(
            "Wait", options={"diary": str(diary), "row_s": ROW_S}, processes=2, batch=BATCH, max_wait_s=0.02
        )
        more: dict[str, Any] = {"shards": {"rows": SHARD, "chunk_rows": SHARD}, "trial": {"rows": 1}}
        if kill.whom == "database" and database is not None:
            database.create(f"job{number}")
            more["ledger_url"] = database.url(f"job{number}")
        settings = ours.config(source, place / "out", [stage], **more)
        began_s, starts, killed = time.monotonic(), 0, False
        while True:
            starts += 1
            code, hit, said = _start(
                settings, place, diary, kill if not killed else None, database, starts > 1
            )
            killed = killed or hit
            if code == 0:
                break
            if starts == STARTS:
                raise PartError(
                    f"{kill}: started {starts} times, ended with {code}: {said[-1500:]}", "look at it"
                )
        took_s = time.monotonic() - began_s
        record = ours.events(place)
        planned_s = min(event["wall_s"] for event in record if event["kind"] == "plan")
        begun = sum(call.items for call in calls(diary) if call.began_s >= planned_s)
        ids = ids_of(place / "out", ROWS)
        return {
            "whom": kill.whom, "share": round(kill.share, 3), "hit": killed, "starts": starts,
            "took_s": round(took_s, 2), "begun": begun, "redone": begun - ROWS, **ids.fields(),
            "faults": sum(event["kind"] == "fault" for event in record),
        }  # fmt: skip


def _start(
    settings: dict[str, Any], place: Path, diary: Path, kill: Kill | None, database: postgres.Server | None,
    again: bool,
) -> tuple[int, bool, str]:  # fmt: skip
    """Start or resume the job and kill; (exit code, whether somebody was killed, what it said)."""
    tree = Tree()
    log = place / "said"
    resumed = again and (place / "runs" / "job" / "run.json").exists()
    if again and not resumed:  # it died before it had a name: a user starts it anew
        subprocess.run(["rm", "-rf", str(place / "runs")], check=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            ours.words(settings, place, *(["--resume"] if resumed else [])), cwd=ROOT, env=tree.environment(),
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    hit = False
    try:
        if kill is not None:
            hit = _kill(kill, process, tree, place, diary, database)
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired as late:
        raise PartError(
            f"{kill}: no end within {TIMEOUT_S:g} s: {log.read_text()[-1500:]}", "look at it"
        ) from late
    finally:
        tree.kill()
        process.wait()
    return code, hit, log.read_text(errors="replace")


def _kill(
    kill: Kill, process: subprocess.Popen[bytes], tree: Tree, place: Path, diary: Path,
    database: postgres.Server | None,
) -> bool:  # fmt: skip
    """Wait for the moment, then kill; whether there was somebody to kill."""
    deadline_s = time.monotonic() + TIMEOUT_S
    wanted = kill.share * ROWS
    while process.poll() is None and time.monotonic() < deadline_s:
        if (place / "runs" / "job" / "logs" / "coordinator.log").exists() and begun(diary) > max(1, wanted):
            break
        time.sleep(LOOK_S)
    time.sleep(kill.later_s)
    if process.poll() is not None:
        return False
    if kill.whom == "database":
        assert database is not None
        database.kill()
        time.sleep(0.3)
        database.start()
        return True
    pids = [process.pid] if kill.whom == "supervisor" else tree.pids()
    if kill.whom not in ("supervisor", "all"):
        pids = sorted(pid for pid in pids if role(pid) == kill.whom)
        pids = pids[:1] if kill.whom != "predictor" else pids[-1:]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(pids)


def begun(diary: Path) -> int:
    """Rows in the diary, the trial's too."""
    noted = diary.read_bytes() if diary.exists() else b""
    return noted.count(b",") + noted.count(b"\n")


def figures(runs: list[Row]) -> dict[str, Any]:
    """Over all runs in which somebody was killed."""
    hits = [run for run in runs if run.get("hit")]
    if not hits:
        return {}
    return {
        "fault_runs": len(hits),
        "fault_runs_failed": sum("failed" in run for run in runs),
        "missing_ids": sum(run["missing"] for run in hits),
        "duplicate_ids": sum(run["duplicate"] + run["foreign"] for run in hits),
        "fault_error_rows": sum(run["errors"] for run in hits),
        "redone_share": round(sum(run["redone"] for run in hits) / (ROWS * len(hits)), 4),
    }


def _show(runs: list[Row]) -> None:
    rows = []
    for whom in WHOM:
        mine = [run for run in runs if run["whom"] == whom and "hit" in run and run["hit"]]
        if mine:
            sums = [str(sum(run[key] for run in mine)) for key in ("missing", "duplicate", "errors")]
            rows.append(
                [whom, str(len(mine)), *sums,
                 f"{sum(run['redone'] for run in mine) / (ROWS * len(mine)):.1%}",
                 f"{max(run['took_s'] for run in mine):.1f}"]
            )  # fmt: skip
    table(["killed", "runs", "missing", "doubled", "errors", "redone", "longest s"], rows)
