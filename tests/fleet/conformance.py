"""What every transport must do; `test_transports.py` and `test_ray_fleet.py` run it on each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from shoestring.base.record import Events, read_events
from shoestring.data.ledger import LedgerSpec
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.supervisor import Interrupts
from tests.fleet.toys import ENTRY, Toy

SAMPLES = 240
BATCH = 8

Watch = Callable[[m.Status], None]


def launch(run_dir: Path, toy: Toy, workers: int, checkpoint_steps: int = 5, **members: Any) -> Launch:
    settings: dict[str, Any] = {
        "backoff_s": 0.02,
        "heartbeat_s": 0.1,
        "heartbeat_timeout_s": 5.0,
        "join_grace_s": 1.0,
    }
    fleet = FleetConfig(
        members=MemberConfig(workers=workers, **(settings | members)),
        pace=PaceConfig(batch=BATCH),
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=checkpoint_steps, keep=2),
    )
    return Launch(run_dir, fleet, LedgerSpec(samples=toy.samples), ENTRY, msgspec.json.encode(toy))


def final_counts(run_dir: Path) -> list[int]:
    newest = max((run_dir / "checkpoints").glob("step-????????"))
    counts: list[int] = json.loads((newest / "counts.json").read_text())
    return counts


def events(run_dir: Path) -> Events:
    found = read_events(run_dir / "events.jsonl")
    assert not found.damage
    return found


def ignore(status: m.Status) -> None:
    """Nobody watches."""


class Transport:
    """One transport under test."""

    workers = 2
    processes = True

    def run(self, launch: Launch, watch: Watch = ignore, interrupts: Interrupts | None = None) -> Outcome:
        raise NotImplementedError

    def kill_coordinator(self) -> None:
        raise NotImplementedError


class Conformance:
    """The suite; a subclass provides the fixture `transport`."""

    def test_every_sample_is_used_once_and_all_is_recorded(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        seen: list[m.Status] = []
        outcome = transport.run(launch(tmp_path, Toy(SAMPLES), transport.workers), seen.append)
        assert outcome == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        record = events(tmp_path)
        assert [e["step"] for e in record.of("step")] == list(range(1, SAMPLES // BATCH + 1))
        assert record.of("round")[0]["members"] == [f"w{i}" for i in range(transport.workers)]
        assert record.of("fault") == []
        assert seen[-1].done == SAMPLES and seen[-1].todo == seen[-1].doing == 0

    def test_a_repeated_request_gets_the_same_answer(self, transport: Transport, tmp_path: Path) -> None:
        toy = Toy(40, faults={"repeat": "yes"})
        assert transport.run(launch(tmp_path, toy, transport.workers)) == Outcome("finished")
        assert final_counts(tmp_path) == [1] * 40

    def test_a_crashed_worker_is_restarted_and_nothing_is_lost(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        last = transport.workers - 1
        toy = Toy(SAMPLES, faults={f"w{last}.1.12": "crash"})
        assert transport.run(launch(tmp_path, toy, transport.workers)) == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        faults = [e for e in events(tmp_path).of("fault") if "worker" in e and e["worker"] == f"w{last}"]
        assert "no luck with step 12" in faults[0]["detail"]

    def test_a_worker_that_fails_the_same_way_is_given_up(self, transport: Transport, tmp_path: Path) -> None:
        everyone = {f"w{i}.*.3": "crash" for i in range(transport.workers)}
        outcome = transport.run(
            launch(tmp_path, Toy(SAMPLES, faults=everyone), transport.workers, same_failures=2)
        )
        assert outcome.status == "failed"
        assert "no luck with step 3" in outcome.error and outcome.todo

    def test_an_interrupted_run_stops_in_order_and_goes_on_later(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        interrupts = Interrupts()

        def watch(status: m.Status) -> None:
            if status.step >= 4:
                interrupts.count = 1

        plan = launch(tmp_path, Toy(SAMPLES, step_s=0.05), transport.workers)
        first = transport.run(plan, watch, interrupts)
        assert (first.status, first.exit_code) == ("interrupted", 130)
        done = sum(final_counts(tmp_path))
        assert 0 < done < SAMPLES
        assert transport.run(launch(tmp_path, Toy(SAMPLES), transport.workers)) == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES


class ProcessConformance(Conformance):
    """What transports with processes of their own must do besides."""

    def test_a_killed_worker_is_replaced(self, transport: Transport, tmp_path: Path) -> None:
        toy = Toy(SAMPLES, faults={"w0.1.7": "die", "w1.1.15": "die"})
        assert transport.run(launch(tmp_path, toy, transport.workers)) == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        gone = {e["worker"] for e in events(tmp_path).of("fault") if "worker" in e}
        assert gone == {"w0", "w1"}

    def test_a_hung_worker_is_found_and_killed(self, transport: Transport, tmp_path: Path) -> None:
        toy = Toy(SAMPLES, faults={"w1.1.7": "stop"})
        outcome = transport.run(launch(tmp_path, toy, transport.workers, heartbeat_timeout_s=3.0))
        assert outcome == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        kills = [e for e in events(tmp_path).of("decision") if e.get("action") == "kill"]
        assert len(kills) == 1 and kills[0]["worker"] == "w1" and "silent" in kills[0]["reason"]

    def test_a_killed_coordinator_comes_back_from_the_store(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        killed: list[int] = []

        def watch(status: m.Status) -> None:
            if len(killed) < 2 and status.step >= 5 + 10 * len(killed):
                killed.append(status.step)
                transport.kill_coordinator()

        outcome = transport.run(launch(tmp_path, Toy(SAMPLES, step_s=0.03), transport.workers), watch)
        assert outcome == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        back = [e for e in events(tmp_path).of("fault") if "came back" in e["reason"]]
        assert len(killed) == len(back) == 2

    def test_all_workers_killed_at_once_go_back_to_the_checkpoint(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        toy = Toy(SAMPLES, faults={"w0.1.13": "die", "w1.1.13": "die"})
        assert transport.run(launch(tmp_path, toy, transport.workers)) == Outcome("finished")
        assert final_counts(tmp_path) == [1] * SAMPLES
        sources = [e["state_from"] for e in events(tmp_path).of("round")]
        assert any(source.endswith("step-00000010") for source in sources)
