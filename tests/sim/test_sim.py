"""The simulator: clean on seeds, the same every time, and able to fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shoestring.sim.command import sim
from shoestring.sim.run import Coverage, run_seed, run_sims
from shoestring.sim.scenario import FAULT_KINDS, SimOptions
from tests.sim.mutations import MUTATIONS, Mutation

OPTIONS = SimOptions()
MUTANT_SEEDS = 120


@pytest.fixture(scope="module")
def swept() -> Coverage:
    """The seeds that all tests of this file look at."""
    return run_sims(range(220), OPTIONS)


def test_many_seeds_keep_every_promise(swept: Coverage) -> None:
    assert swept.violation is None, "\n".join([*swept.violation.tail, swept.violation.violation])
    assert swept.seen["outcome_finished"] == swept.seeds == 220


def test_the_seeds_cover_what_they_are_for(swept: Coverage) -> None:
    faults = [f"fault_{kind}" for kind in FAULT_KINDS]
    wanted = [
        "messages_lost",
        "messages_doubled",
        "messages_late",
        "stale_replies",
        "torn_collectives",
        "rollbacks",
        "coordinator_deaths",
        "flushes_failed",
        "checkpoints",
        "outcome_failed",
        "outcome_interrupted",
        "fault_aimed_kill",
        "out_of_memory",
        "action_kill_restart",
        "action_add_workers",
        "action_remove_worker",
        "action_adjust_accumulation",
        *faults,
    ]
    few = {name: swept.seen[name] for name in wanted if swept.seen[name] < 10}
    assert not few, f"hardly ever happened: {few}"
    assert swept.seen["models_compared"] > 5 * swept.seen["logged_step"]


def test_a_seed_replays_event_by_event() -> None:
    first, second = run_seed(17, OPTIONS), run_seed(17, OPTIONS)
    assert first == second
    assert first.trace != run_seed(18, OPTIONS).trace


def test_a_seed_replays_in_another_process() -> None:
    """Hashes of strings differ between processes; no decision may hang on the order of a set."""
    traces = set()
    for hash_seed in ("1", "2"):
        code = "from shoestring.sim.run import *; print(run_sims(range(8), SimOptions()).trace)"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            text=True,
            capture_output=True,
            check=True,
            timeout=120,
            cwd=Path(__file__).parents[2],
        )
        traces.add(done.stdout.strip())
    assert len(traces) == 1


def test_the_real_store_behaves_like_the_fake_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seeds on SQLite: the same events, one by one."""
    if Path("/dev/shm").is_dir():  # thousands of synchronised commits: no disk is needed for them
        monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    fake = run_sims(range(3), SimOptions())
    real = run_sims(range(3), SimOptions(store="sqlite"))
    assert real.violation is None
    assert real.trace == fake.trace


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_a_broken_part_is_found(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation(monkeypatch)
    found = run_sims(range(MUTANT_SEEDS), OPTIONS).violation
    assert found is not None, f"{mutation.__doc__} Not found in {MUTANT_SEEDS} seeds"
    again = run_seed(found.seed, OPTIONS)
    assert (again.violation, again.trace) == (found.violation, found.trace)


def test_answers_before_the_flush_are_found() -> None:
    assert run_sims(range(MUTANT_SEEDS), SimOptions(flush_first=False)).violation is not None


def test_the_command_prints_what_was_covered(capsys: pytest.CaptureFixture[str]) -> None:
    assert sim(3, None, "", as_json=False) == 0
    assert "3 seeds kept every promise" in capsys.readouterr().out
    assert sim(3, None, "", as_json=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["seeds"] == 3 and shown["violation"] is None and shown["seen"]["messages"] > 0


def test_the_command_prints_the_seed_that_failed_and_its_last_events(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    MUTATIONS[0](monkeypatch)
    assert sim(50, None, "", as_json=True) == 1
    broken = json.loads(capsys.readouterr().out)["violation"]
    assert broken["tail"]
    assert sim(1, broken["seed"], "", as_json=False) == 1
    text = capsys.readouterr().out
    assert f"seed {broken['seed']} breaks a promise" in text and broken["what"] in text
