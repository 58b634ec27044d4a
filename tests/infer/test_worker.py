"""A worker with real processes: whatever is done to them, each row comes out once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from shoestring.base.clock import SystemClock
from shoestring.base.errors import InferError
from tests.infer.real_job import RealJob, job


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Any]:
    made: list[RealJob] = []

    def begin(
        rows: int, stages: list[dict[str, Any]], shard_rows: int = 500, seat: Any = None, **limits: Any
    ) -> RealJob:
        made.append(RealJob(tmp_path, job(tmp_path, rows, stages, **limits), shard_rows, **(seat or {})))
        return made[-1]

    yield begin
    for one in made:
        one.close()
        assert not one.segments.folder.exists()


def check(found: RealJob, rows: int, bad: dict[int, str] | None = None) -> None:
    """Each row once, with its answer or its error."""
    table = found.table()
    assert table["x"].to_pylist() == list(range(rows))
    assert [at for at, name in enumerate(table["row"].to_pylist()) if name.startswith("a.parquet")] == list(
        range(rows // 3)
    )
    errors = {at: text for at, text in enumerate(table["error"].to_pylist()) if text is not None}
    assert errors.keys() == (bad or {}).keys(), errors
    for at, text in (bad or {}).items():
        assert text in errors[at]
    good = [at for at in range(rows) if at not in errors]
    assert [table["y"][at].as_py() for at in good] == [2 * at for at in good]
    assert not [name for name in os.listdir(found.segments.folder) if name[0] in "ar"]


def test_rows_come_out_once_with_their_names(begun: Any) -> None:
    found = begun(3000, [{"uses": "Double"}])
    assert found.run()
    check(found, 3000)


def test_parts_find_back_to_their_row(begun: Any) -> None:
    found = begun(1000, [{"uses": "Detect", "batch": 32}, {"uses": "Classify", "batch": 50}])
    assert found.run()
    table = found.table()
    assert table["label"].to_pylist() == [[10 * at + k for k in range(at % 3)] for at in range(1000)]
    assert table["error"].null_count == 1000


@pytest.mark.faults
@pytest.mark.parametrize("pool", ["load", "slow", "write"])
def test_a_process_that_is_killed_costs_nothing(begun: Any, pool: str) -> None:
    found = begun(3000, [{"uses": "Slow", "batch": 20}], shard_rows=250)
    for done in (1, 4, 8):
        found.run(until=lambda done=done: len(found.seat.done_leases) >= done and found.kill(pool))
    assert found.run()
    check(found, 3000)
    assert any("SIGKILL" in fault for fault in found.seat.faults)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("what", "text"),
    [("segv", "killed its process (SIGSEGV)"), ("exit", "exit code 3"), ("raise", "ValueError: not this one"),
     ("memory", "does not fit into memory")],
)  # fmt: skip
def test_a_poison_row_alone_gets_the_error(begun: Any, what: str, text: str) -> None:
    found = begun(
        600, [{"uses": "Poison", "batch": 32, "options": {"at": [77, 300], "what": what}}], shard_rows=200
    )
    assert found.run()
    check(found, 600, {77: text, 300: text})


@pytest.mark.faults
def test_a_row_that_hangs_is_found_by_its_time(begun: Any) -> None:
    stage = {"uses": "Poison", "batch": 8, "options": {"at": [150], "what": "hang"}, "hang_s": 2.0}
    found = begun(300, [stage], shard_rows=100)
    assert found.run()
    check(found, 300, {150: "took longer than 2 s"})


@pytest.mark.faults
def test_a_stopped_process_is_replaced_and_nobody_is_to_blame(begun: Any) -> None:
    found = begun(1500, [{"uses": "Slow", "batch": 20, "hang_s": 3.0}])
    assert not found.run(
        until=lambda: len(found.seat.done_leases) >= 1 and found.kill("slow", signal.SIGSTOP)
    )
    assert found.run()
    check(found, 1500)
    assert any("took longer than 3 s" in fault for fault in found.seat.faults)


@pytest.mark.faults
def test_a_leak_is_stopped_by_a_new_process(begun: Any) -> None:
    found = begun(3000, [{"uses": "Leak", "batch": 10, "memory_bytes": 500 << 20}])
    assert found.run()
    check(found, 3000)
    assert any("MB: replaced" in fault for fault in found.seat.faults)


@pytest.mark.parametrize(("uses", "words"), [("Bug", "no such column"), ("BadSetup", "no such model")])
def test_a_bug_stops_the_job_in_seconds(begun: Any, uses: str, words: str) -> None:
    found = begun(5000, [{"uses": uses}])
    with pytest.raises(InferError) as caught:
        found.engine.run()
    assert words in caught.value.what and "Traceback" in caught.value.what and "made.py" in caught.value.what
    assert found.seat.broken_with == (caught.value.what, caught.value.todo)
    assert uses != "Bug" or "(row a.parquet#0)" in caught.value.what


@pytest.mark.faults
def test_without_its_nursery_a_worker_ends(begun: Any) -> None:
    found = begun(5000, [{"uses": "Slow"}])
    assert not found.run(until=lambda: len(found.seat.done_leases) == 1)
    os.kill(found.nursery.pid, signal.SIGKILL)
    with pytest.raises(InferError, match="has ended"):
        found.run()


def test_what_is_in_hand_goes_back_when_the_machine_goes(begun: Any) -> None:
    found = begun(20_000, [{"uses": "Slow", "batch": 20}], shard_rows=2000, drain_s=1.0)
    assert not found.run(until=lambda: len(found.engine._bench.shards) == 2)
    found.engine.notice = "told to go (SIGTERM)"
    assert found.run()
    assert found.seat.backs and not found.seat.leases


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_goes_is_replaced_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    """The whole job, as a user starts it: killed, or told to go, once its first files are there."""
    job(tmp_path, 12_000, [{"uses": "Slow"}])
    command = [
        sys.executable, "-m", "shoestring", "infer", "--stage", f"{tmp_path}/made.py:Slow",
        "--source", f"{tmp_path}/*.parquet", "--output", str(tmp_path / "out"),
        "--runs-dir", str(tmp_path / "runs"), "--set", "shards.rows=500", "--name", "x", "--json",
    ]  # fmt: skip
    with (tmp_path / "told").open("wb") as told:
        run = psutil.Popen(command, stdout=told, stderr=told, cwd=Path(__file__).parents[2])
    clock = SystemClock()
    end_s = clock.now() + 100.0
    while not list((tmp_path / "out").glob("part-*")):
        assert run.poll() is None and clock.now() < end_s, (tmp_path / "told").read_text()
        clock.sleep(0.05)
    worker = next(one for one in run.children() if one.children())  # the coordinator has none
    shared = {name for name in os.listdir("/dev/shm") if f"-{worker.pid}-" in name}
    family = worker.children(recursive=True)
    worker.send_signal(number)
    assert run.wait(100.0) == 0, (tmp_path / "told").read_text()
    rows = pq.read_table(sorted(map(str, (tmp_path / "out").glob("part-*")))).sort_by("x")
    assert rows["x"].to_pylist() == list(range(12_000)) and rows["error"].null_count == 12_000
    assert rows["y"].to_pylist() == [2 * at for at in range(12_000)]
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert shared and not shared & set(os.listdir("/dev/shm"))
