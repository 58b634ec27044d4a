"""`fleet.control.policy` by the command line: a function of the user steers a run, a wrong name stops it."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest
from click.testing import CliRunner

from shoestring import cli
from shoestring.base.record import read_events
from tests.commands.journeys import tiny_sets, write_texts

PROGRAM = Path(sysconfig.get_path("scripts")) / "shoestring"
MINE = """
from shoestring.control.decisions import AdjustBatch, AdjustLr, Decision

def decide(now, state, options):
    shares = {name: 0.75 if name == "w0" else 0.25 for name in state.workers}
    if state.shares == shares:
        return Decision((), "as I like it")
    return Decision((AdjustBatch(shares), AdjustLr(0.5)), "w0 is mine")
"""


def test_a_function_in_the_folder_that_one_starts_in_steers_a_run(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    data, runs = write_texts(tmp_path / "data"), tmp_path / "runs"
    more = {"fleet.members.workers": 2, "fleet.control.policy": "mine:decide", "fleet.control.interval_s": 0}
    sets = tiny_sets(data, tmp_path / "cache", evaluate__baselines="false", **more)
    words = ["run", "pretrain", "--name", "tiny", "--runs-dir", str(runs), "--json", *sets]
    done = subprocess.run(
        [PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    log = read_events(runs / "tiny" / "events.jsonl")
    first = log.of("decision")[0]
    assert first["action"] == "adjust_batch, adjust_lr" and first["reason"] == "w0 is mine"
    assert first["policy"] == "mine:decide"
    assert [step["workers"]["w0"]["samples"] for step in log.of("step")] == [6] * 6


@pytest.mark.parametrize(
    ("name", "words"), [("nobody", "there is no policy 'nobody'"), ("nowhere:decide", "cannot be loaded")]
)
def test_a_wrong_name_stops_a_run_before_its_data_is_read(tmp_path: Path, name: str, words: str) -> None:
    arguments = ["run", "demo", "--runs-dir", str(tmp_path / "runs"), "--name", "no", "--json"]
    done = CliRunner().invoke(cli.build(), [*arguments, "--set", f"fleet.control.policy={name}"])
    assert done.exit_code == 2 and words in done.output, done.output
    kinds = [event["kind"] for event in read_events(tmp_path / "runs" / "no" / "events.jsonl").events]
    assert kinds == ["run", "end"]
