"""What every transport must do with a job over rows: see `test_shard_processes.py`, `test_ray_shards.py`."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq

from shoestring.data.ledger import LedgerSpec
from shoestring.data.sink_config import SinkConfig
from shoestring.fleet import messages as m
from shoestring.fleet.config import FleetConfig, MemberConfig
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.outputs_spec import OutputsSpec
from shoestring.fleet.supervisor import Interrupts
from tests.fleet.conformance import Transport, events
from tests.fleet.shard_toys import ENTRY, Toy

ROWS = 300
SHARD = 10


def job(
    root: Path, workers: int, rows: int = ROWS, toy: dict[str, Any] | None = None, **members: Any
) -> Launch:
    settings: dict[str, Any] = {"backoff_s": 0.02, "heartbeat_s": 0.1, "heartbeat_timeout_s": 10.0}
    sink = str(root / "out")
    return Launch(
        run_dir=root / "run",
        fleet=FleetConfig(members=MemberConfig(workers=workers, **(settings | members))),
        ledger=LedgerSpec(samples=rows, shuffle="none", max_attempts=2),
        entry=ENTRY,
        payload=msgspec.json.encode(Toy(sink, **(toy or {}))),
        outputs=OutputsSpec(SinkConfig(path=sink), "toy", SHARD, max_error_share=0.05, drain_s=5.0),
    )


def written(root: Path) -> dict[int, str | None]:
    """Row -> its error, from the files that a reader of the folder sees; each row is there once."""
    rows: list[tuple[int, str | None]] = []
    for path in sorted((root / "out").glob("*.parquet")):
        table = pq.read_table(path)
        rows += zip(table.column("row").to_pylist(), table.column("error").to_pylist(), strict=True)
    doubled = [row for row, count in Counter(row for row, _ in rows).items() if count > 1]
    assert not doubled, doubled
    return dict(rows)


def all_of(rows: int = ROWS) -> dict[int, str | None]:
    return dict.fromkeys(range(rows))


class ShardConformance:
    """The suite; a subclass provides the fixture `transport`."""

    def test_every_row_is_written_once(self, transport: Transport, tmp_path: Path) -> None:
        seen: list[m.Status] = []
        plan = job(tmp_path, transport.workers, toy={"row_s": 0.002})
        assert transport.run(plan, seen.append) == Outcome("finished")
        assert written(tmp_path) == all_of()
        (summary,) = events(tmp_path / "run").of("summary")
        assert (summary["rows"], summary["failed"], summary["lost_rows"]) == (ROWS, 0, 0)
        assert not events(tmp_path / "run").of("fault")
        assert seen[-1].job is not None and seen[-1].job.done == ROWS
        assert transport.run(plan) == Outcome("finished")  # again: nothing is left to do
        assert written(tmp_path) == all_of()

    def test_a_crashed_worker_is_replaced(self, transport: Transport, tmp_path: Path) -> None:
        last = f"w{transport.workers - 1}"
        plan = job(tmp_path, transport.workers, toy={"faults": {f"{last}.1.2": "crash"}, "row_s": 0.002})
        assert transport.run(plan) == Outcome("finished")
        assert written(tmp_path) == all_of()
        faults = [e for e in events(tmp_path / "run").of("fault") if "worker" in e and e["worker"] == last]
        assert "no luck with row" in faults[0]["detail"]

    def test_a_bug_stops_the_job_with_its_error(self, transport: Transport, tmp_path: Path) -> None:
        plan = job(tmp_path, transport.workers, toy={"faults": {"w0.1.1": "broken"}})
        outcome = transport.run(plan)
        assert (outcome.status, outcome.todo) == ("failed", "mend the toy")
        assert "ZeroDivisionError in row" in outcome.error

    def test_an_interrupted_job_goes_on_later(self, transport: Transport, tmp_path: Path) -> None:
        interrupts = Interrupts()

        def watch(status: m.Status) -> None:
            if status.done:
                interrupts.count = 1

        plan = job(tmp_path, transport.workers, toy={"row_s": 0.01})
        first = transport.run(plan, watch, interrupts)
        assert (first.status, first.exit_code) == ("interrupted", 130)
        some = written(tmp_path)
        assert 0 < len(some) < ROWS
        assert transport.run(job(tmp_path, transport.workers)) == Outcome("finished")
        assert written(tmp_path) == all_of()
        assert not events(tmp_path / "run").of("fault")


class ShardProcessConformance(ShardConformance):
    """What transports with processes of their own must do besides."""

    def test_workers_and_coordinator_killed_at_any_point(self, transport: Transport, tmp_path: Path) -> None:
        seed = 7
        chance = random.Random(seed)
        kinds = ["die", "die staging", "die staged", "die counted"]
        faults = {f"w{w}.{i}.{chance.randint(2, 5)}": chance.choice(kinds) for w in (0, 1) for i in (1, 2, 3)}
        points = sorted(chance.sample(range(1, ROWS - 50), 3))

        def watch(status: m.Status) -> None:
            if points and status.done >= points[0]:
                points.pop(0)
                transport.kill_coordinator()

        plan = job(tmp_path, 2, toy={"faults": faults, "row_s": 0.005}, same_failures=8)
        assert transport.run(plan, watch) == Outcome("finished")
        assert written(tmp_path) == all_of() and not points
        reasons = [event["reason"] for event in events(tmp_path / "run").of("fault")]
        assert sum("is gone" in reason for reason in reasons) >= 4
        assert sum("came back" in reason for reason in reasons) >= 3

    def test_a_row_that_kills_its_worker_is_written_with_an_error(
        self, transport: Transport, tmp_path: Path
    ) -> None:
        plan = job(tmp_path, 2, rows=60, toy={"poison": (17,), "row_s": 0.002}, same_failures=3)
        assert transport.run(plan) == Outcome("finished")
        rows = written(tmp_path)
        assert sorted(rows) == list(range(60))
        assert [row for row, error in rows.items() if error] == [17] and "lost with" in str(rows[17])

    def test_a_hung_worker_is_killed(self, transport: Transport, tmp_path: Path) -> None:
        toy = {"faults": {"w1.1.2": "stop"}, "row_s": 0.005}
        assert transport.run(job(tmp_path, 2, toy=toy, heartbeat_timeout_s=4.0)) == Outcome("finished")
        assert written(tmp_path) == all_of()
        kills = [e for e in events(tmp_path / "run").of("decision") if e.get("action") == "kill"]
        # On a machine under load another may have been silent for as long.
        assert any(e["worker"] == "w1" and "silent" in e["reason"] for e in kills), kills

    def test_who_is_told_to_go_leaves_and_is_replaced(self, transport: Transport, tmp_path: Path) -> None:
        toy = {"faults": {"w1.1.2": "told to go"}, "row_s": 0.005}
        assert transport.run(job(tmp_path, 2, toy=toy)) == Outcome("finished")
        assert written(tmp_path) == all_of()
        record = events(tmp_path / "run")
        assert [e["worker"] for e in record.of("decision") if e.get("action") == "left"] == ["w1"]
        assert not record.of("fault")
