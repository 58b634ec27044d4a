"""A job that has failed in its middle, or whose output or run is elsewhere by now: who goes on, and who is
refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.errors import ConfigError, RunError, SinkError
from tests.commands.infer_jobs import STAGE, here, infer, rows, write_csv, write_stage

ROWS = 400
SHARD = 20
BUGGY = (
    STAGE.replace("self.name = context.name", "check()").replace("time.sleep(", "alive() or time.sleep(")
    + """
import os, pathlib
OUT = pathlib.Path(__file__).parent / "out"

def check():
    if any(OUT.glob("part-*")):
        raise RuntimeError("no such luck")

def alive():
    if any(OUT.glob("part-*")):
        os._exit(3)
"""
)
"""Its process ends once there is some output, and no other one can be set up."""


def job(folder: Path) -> tuple[str, ...]:
    """Settings of a job of some seconds."""
    slow = f'[{{uses="{folder}/stages.py:Scale", options={{slow_s=0.01}}, batch=5, processes=1}}]'
    return "--set", f"shards.rows={SHARD}", "--set", f"stages={slow}"


def fail(folder: Path) -> Path:
    """A job that has failed after some of its shards."""
    write_stage(folder, BUGGY)
    write_csv(folder / "data" / "a.csv", range(ROWS))
    code, answer = infer(folder, "--name", "first", *job(folder))
    assert code and "stage scale cannot be set up: RuntimeError: no such luck" in answer["error"], answer
    assert 0 < len(parts(folder)) < ROWS // SHARD
    return folder


def parts(folder: Path) -> dict[Path, int]:
    """Files of the output, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in (folder / "out").glob("part-*")}


def resume(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """`shoestring resume first --json`: exit code and answer."""
    done = here("resume", "first", "--runs-dir", str(folder / "runs"), "--json", *arguments)
    assert done.stdout.strip(), (done.stderr, done.exception)
    answer: dict[str, Any] = json.loads(done.stdout)
    return done.exit_code, answer


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that change nothing in it."""
    return fail(tmp_path_factory.mktemp("failed"))


def test_who_mends_a_bug_goes_on_with_what_is_done(tmp_path: Path) -> None:
    before = parts(fail(tmp_path))
    write_stage(tmp_path)
    code, answer = resume(tmp_path)
    assert code == 0 and answer["status"] == "finished", answer
    found = rows(tmp_path)
    assert len(found) == ROWS == answer["result"]["rows"]
    assert all(row["error"] is None and row["scaled"] == 2 * row["x"] for row in found.values())
    assert before.items() <= parts(tmp_path).items(), "what is done stays done"


@pytest.mark.parametrize(
    ("change", "what", "todo"),
    [
        ("source.max_row_bytes=99", "source or the sink of a job cannot change", "without changes to source"),
        ('source.columns=["x"]', "source or the sink of a job cannot change", "without changes to source"),
        ("sink.format=jsonl", "source or the sink of a job cannot change", "without changes to source"),
        (
            'stages=[{uses="STAGES:Root", name="scale"}]',
            "the output would change within the job: scale.root (double), scale.scaled (int64)",
            "the same columns",
        ),
    ],
)
def test_a_resume_that_would_make_another_output_is_refused(
    failed: Path, change: str, what: str, todo: str
) -> None:
    before = parts(failed)
    code, answer = resume(failed, "--set", change.replace("STAGES", str(failed / "stages.py")))
    assert code == ConfigError.exit_code, answer
    assert what in answer["error"]["what"] and todo in answer["error"]["todo"], answer
    assert parts(failed) == before


def test_part_of_an_output_whose_run_is_not_at_hand_is_refused(failed: Path) -> None:
    before = parts(failed)
    code, answer = infer(failed, "--runs-dir", str(failed / "other-runs"), *job(failed))
    assert code == RunError.exit_code, answer
    assert "part of this job's output" in answer["error"]["what"] and "--runs-dir" in answer["error"]["todo"]
    assert parts(failed) == before and not (failed / "other-runs").exists()


def test_a_finished_run_whose_output_is_gone_is_told(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(20))
    assert infer(tmp_path, "--name", "first")[0] == 0
    shutil.rmtree(tmp_path / "out")
    code, answer = resume(tmp_path)
    assert code == SinkError.exit_code, answer
    assert "is finished, but its output is not in" in answer["error"]["what"]
    assert "another --name" in answer["error"]["todo"] and not (tmp_path / "out").exists()
