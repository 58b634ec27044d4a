"""Part `faults`: kills at seeded points of small jobs, ours; what is missing, doubled, wrong, done again.

Beside kills a process hangs or leaks. Every other job has two workers: what one loses goes to the other. A
full disk and rows that kill whoever touches them are tested elsewhere (`tests/infer`).
"""

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
from benchmarks.infer.check import ids_of, wrong_values
from benchmarks.infer.diary import calls
from benchmarks.infer.stages import LEAK_BYTES, Wait
from benchmarks.infer.tree import Tree, role
from benchmarks.network.arms import PartError

WHOM = (
    "loader", "predictor", "writer", "nursery", "worker", "coordinator", "supervisor", "all", "database",
    "hang", "leak",
)  # fmt: skip
ROWS, FILES, BATCH, SHARD = 600, 4, 10, 25
ROW_S = 0.005
"""Of a process that computes, of which there are two: a second and a half of work."""
TIMEOUT_S = 90.0
STARTS = 4
"""Of a job at most: what a person would do whose job has died."""
LOOK_S = 0.004
LEAK = "leak"
HANG_S, SETUP_S = 3.0, 15.0
"""Of jobs of which a process hangs: a batch takes 50 ms."""
FULL, QUICK = 220, 20
Row = dict[str, Any]


@dataclass(frozen=True)
class Kill:
    """What is done to a job.

    Attributes:
        whom: a role; `all`: every process of the job; `database`: the server that has the ledger; `hang`: a
            predictor is stopped, and stays so; `leak`: a predictor exceeds its bound of memory once.
        share: of the rows that are begun by then, in [0, 1); and `later_s` after that.
        workers: of the job; what computes is two processes in any case.
    """

    whom: str
    share: float
    later_s: float
    workers: int = 1

    @classmethod
    def draw(cls, number: int) -> Kill:
        """The kill of this number: roles in turn, with one worker and with two; the moment from a seed."""
        rng = random.Random(number)
        share, later_s = rng.uniform(0.0, 0.98), rng.uniform(0.0, 0.05)
        # An odd number of roles: each meets both.
        return cls(WHOM[number % len(WHOM)], share, later_s, 1 + number % 2)


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
                runs.append({"number": number, "whom": kill.whom, "workers": kill.workers, "failed": True})
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
        settings = _settings(kill, source, place)
        if kill.whom == "database" and database is not None:
            database.create(f"job{number}")
            settings["ledger_url"] = database.url(f"job{number}")
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
            "whom": kill.whom, "workers": kill.workers, "share": round(kill.share, 3), "hit": killed,
            "starts": starts, "took_s": round(took_s, 2), "begun": begun, "redone": begun - ROWS,
            **ids.fields(), "wrong": wrong_values(place / "out", Wait.value),
            "faults": sum(event["kind"] == "fault" for event in record),
        }  # fmt: skip


def _settings(kill: Kill, source: Path, place: Path) -> dict[str, Any]:
    """Of the job."""
    options = {"diary": str(place / "diary"), "row_s": ROW_S}
    own: dict[str, Any] = {}
    more: dict[str, Any] = {"shards": {"rows": SHARD, "chunk_rows": SHARD}, "trial": {"rows": 1}}
    if kill.workers > 1:
        more["fleet"] = {"members": {"workers": kill.workers}}
    if kill.whom == "hang":
        own["hang_s"] = HANG_S
        more["limits"] = {"setup_s": SETUP_S}  # it may be met before it is set up
    if kill.whom == "leak":
        options["leak"] = str(place / LEAK)
        own["memory_bytes"] = LEAK_BYTES
    stage = ours.stage(
        "Wait", options=options, processes=2 // kill.workers, batch=BATCH, max_wait_s=0.02, **own
    )
    return ours.config(source, place / "out", [stage], **more)


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
    if kill.whom == "leak":
        return _leaked(place / LEAK, process, deadline_s)
    pids = [process.pid] if kill.whom == "supervisor" else tree.pids()
    if kill.whom not in ("supervisor", "all"):
        wanted_role = "predictor" if kill.whom == "hang" else kill.whom
        pids = sorted(pid for pid in pids if role(pid) == wanted_role)
        pids = pids[:1] if wanted_role != "predictor" else pids[-1:]
    for pid in pids:
        try:
            os.kill(pid, signal.SIGSTOP if kill.whom == "hang" else signal.SIGKILL)
        except ProcessLookupError:
            continue
    return bool(pids)


def _leaked(order: Path, process: subprocess.Popen[bytes], deadline_s: float) -> bool:
    """Let the next predictor that is called leak; whether there was one before the job's end."""
    order.touch()
    while order.exists() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(LOOK_S)
    return not order.exists()


def begun(diary: Path) -> int:
    """Rows in the diary, the trial's too."""
    noted = diary.read_bytes() if diary.exists() else b""
    return noted.count(b",") + noted.count(b"\n")


def figures(runs: list[Row]) -> dict[str, Any]:
    """What is wrong, over all runs that have ended, whether anybody was met or not; what was done again, over
    those in which somebody was. Values and workers of older runs were not recorded: there was one worker."""
    if not runs:
        return {}
    ended = [run for run in runs if "failed" not in run]
    hits = [run for run in ended if run["hit"]]
    found: dict[str, Any] = {
        "fault_runs": len(hits),
        "fault_runs_two_workers": sum("workers" in run and run["workers"] > 1 for run in hits),
        "fault_runs_failed": len(runs) - len(ended),
        "missing_ids": sum(run["missing"] for run in ended),
        "duplicate_ids": sum(run["duplicate"] + run["foreign"] for run in ended),
        "fault_error_rows": sum(run["errors"] for run in ended),
    }
    if checked := [run["wrong"] for run in ended if "wrong" in run]:
        found["wrong_values"] = sum(checked)
    if hits:
        found["redone_share"] = round(sum(run["redone"] for run in hits) / (ROWS * len(hits)), 4)
    return found


def broken(runs: list[Row]) -> str:
    """Why the benchmark must not end well: runs without an end, rows that are not as they should be; empty:
    all is well."""
    found = figures(runs)
    bad = ("fault_runs_failed", "missing_ids", "duplicate_ids", "wrong_values", "fault_error_rows")
    return ", ".join(f"{key}: {found[key]}" for key in bad if found.get(key))


def _show(runs: list[Row]) -> None:
    rows = []
    for whom in WHOM:
        own = [run for run in runs if run["whom"] == whom]
        mine = [run for run in own if "failed" not in run and run["hit"]]
        lost = sum("failed" in run for run in own)
        if mine or lost:
            sums = [str(sum(run[key] for run in mine)) for key in ("missing", "duplicate", "wrong", "errors")]
            redone = sum(run["redone"] for run in mine) / (ROWS * max(1, len(mine)))
            longest_s = max((run["took_s"] for run in mine), default=0.0)
            told = sum(run["faults"] > 0 for run in mine)
            rows.append(
                [whom, str(len(mine)), str(lost), str(told), *sums, f"{redone:.1%}", f"{longest_s:.1f}"]
            )
    table(
        ["killed", "runs", "no end", "told", "missing", "doubled", "wrong", "errors", "redone", "longest s"],
        rows,
    )
