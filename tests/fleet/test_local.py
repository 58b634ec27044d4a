"""What only the local transport meets: signals, dying parents, full disks, hanging coordinators."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shoestring.base.clock import SystemClock
from shoestring.base.errors import FleetError, RunError
from shoestring.fleet import messages as m
from shoestring.fleet.inprocess import run_inprocess
from shoestring.fleet.launch import Outcome, load_entry
from shoestring.fleet.local import LocalHost
from shoestring.fleet.lock import RunLock
from shoestring.fleet.processes import fork_child
from shoestring.fleet.supervisor import Interrupts
from tests.fleet.conformance import SAMPLES, events, final_counts, launch
from tests.fleet.test_transports import LocalTransport
from tests.fleet.toys import Toy
from tests.waiting import wait_until

CLOCK = SystemClock()


def children_of(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.faults
def test_nobody_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.fleet.conformance import launch; from tests.fleet.test_transports import LocalTransport\n"
        "from tests.fleet.toys import Toy\n"
        "LocalTransport().run(launch(Path(sys.argv[1]), Toy(100_000, step_s=0.02), 2))\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    assert wait_until(lambda: len(children_of(supervisor.pid)) == 3, 30.0)
    children = children_of(supervisor.pid)
    assert all(running(pid) for pid in children)
    supervisor.kill()
    supervisor.wait()
    assert wait_until(lambda: not any(running(pid) for pid in children))


@pytest.mark.faults
def test_ctrl_c_twice_ends_everything_at_once(tmp_path: Path) -> None:
    transport, interrupts = LocalTransport(), Interrupts()

    def watch(status: m.Status) -> None:
        if status.round_id:
            os.kill(os.getpid(), signal.SIGINT)

    with interrupts:
        # A step takes longer than the test may: only the second Ctrl-C can end it.
        outcome = transport.run(launch(tmp_path, Toy(SAMPLES, step_s=1000.0), 2), watch, interrupts)
    assert (outcome.exit_code, interrupts.count) == (130, 2)
    assert "killed at once" in outcome.error
    assert transport.host.alive() == () and not transport.host.socket_path.exists()


def test_ctrl_c_twice_leaves_a_worker_of_this_process(tmp_path: Path) -> None:
    interrupts, statuses = Interrupts(), []

    def watch(status: m.Status) -> None:
        statuses.append(status.step)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with interrupts:
        outcome = run_inprocess(launch(tmp_path, Toy(SAMPLES), 1), CLOCK, watch, interrupts)
    assert (outcome.exit_code, len(statuses)) == (130, 1) and "resume" in outcome.todo


@pytest.mark.faults
def test_workers_in_fresh_interpreters(tmp_path: Path) -> None:
    plan = launch(tmp_path, Toy(80, faults={"w1.1.4": "die"}), 2, join_grace_s=20.0)
    # The toy touches no device: this is the way that CUDA workers are started.
    assert LocalTransport().run(replace(plan, device="cuda")) == Outcome("finished")
    assert final_counts(tmp_path) == [1] * 80


@pytest.mark.faults
def test_a_hung_coordinator_is_replaced(tmp_path: Path) -> None:
    transport, stopped = LocalTransport(), []

    def watch(status: m.Status) -> None:
        if not stopped and status.step >= 5:
            stopped.append(transport.host.coordinator_pid)
            os.kill(transport.host.coordinator_pid, signal.SIGSTOP)

    plan = launch(tmp_path, Toy(SAMPLES, step_s=0.02), 2, hang_timeout_s=1.0)
    assert transport.run(plan, watch) == Outcome("finished")
    assert final_counts(tmp_path) == [1] * SAMPLES
    assert len(stopped) == 1


@pytest.mark.faults
def test_a_coordinator_that_dies_again_and_again_is_given_up(tmp_path: Path) -> None:
    transport = LocalTransport()

    def watch(status: m.Status) -> None:
        transport.kill_coordinator()

    outcome = transport.run(launch(tmp_path, Toy(SAMPLES, step_s=0.05), 2, same_failures=2), watch)
    assert outcome.status == "failed"
    assert "coordinator failed 2 times" in outcome.error and "SIGKILL" in outcome.error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True)
    if made.returncode != 0:
        pytest.skip("a small disk of its own takes root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_under_the_ledger_stops_the_run_and_loses_nothing(
    tmp_path: Path, small_disk: Path, workers: int
) -> None:
    transport, filler = LocalTransport(), small_disk / "filler"

    def fill(status: m.Status) -> None:
        if status.step >= 5 and not filler.exists():
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 4096)

    def run(watch: object, step_s: float) -> Outcome:
        plan = launch(tmp_path / "run", Toy(SAMPLES, step_s=step_s), workers)
        plan = replace(plan, ledger_url=f"sqlite:///{small_disk}/ledger.db")
        assert callable(watch)
        return run_inprocess(plan, CLOCK, watch, Interrupts()) if workers == 1 else transport.run(plan, watch)

    full = run(fill, 0.05)
    assert full.status == "failed"
    assert "full" in full.error and "space" in full.todo
    filler.unlink()
    assert run(lambda status: None, 0.002) == Outcome("finished")
    assert final_counts(tmp_path / "run") == [1] * SAMPLES


@pytest.mark.faults
def test_the_fault_of_a_stranger_on_the_socket_is_recorded(tmp_path: Path) -> None:
    transport, called = LocalTransport(), []

    def watch(status: m.Status) -> None:
        if not called:
            called.append(
                subprocess.run([sys.executable, "-c", STRANGER, transport.host.socket_path], check=True)
            )

    assert transport.run(launch(tmp_path, Toy(SAMPLES, step_s=0.01), 2), watch) == Outcome("finished")
    assert final_counts(tmp_path) == [1] * SAMPLES
    assert any("malformed" in e["reason"] for e in events(tmp_path).of("fault"))


STRANGER = """
import socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
line.sendall(b"GET / HTTP/1.1" * 10)
assert line.recv(1) == b""
"""


def test_a_second_supervisor_is_refused(tmp_path: Path) -> None:
    with (
        RunLock(tmp_path),
        pytest.raises(RunError, match=f"in progress \\(pid {os.getpid()}\\)"),
        RunLock(tmp_path),
    ):
        pass
    with RunLock(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_socket_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(FleetError, match="already taken"):
        LocalHost(launch(tmp_path, Toy(8), 1), CLOCK, tmp_path / "taken")


@pytest.mark.parametrize("entry", ["no.such.module:main", "tests.fleet.toys:nothing", "nonsense"])
def test_an_entry_that_does_not_exist_is_named(entry: str) -> None:
    with pytest.raises(FleetError, match=entry):
        load_entry(entry)


def _fails(_: int) -> int:
    raise ValueError("out of luck")


def _prints(_: int) -> int:
    print("my last line")
    return 3


def _dies(_: int) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [(_fails, 1, "ValueError: out of luck"), (_prints, 3, "my last line"), (_dies, -11, "killed by SIGSEGV")],
)
def test_how_a_child_ended_and_what_it_said(tmp_path: Path, body: object, code: int, words: str) -> None:
    assert callable(body)
    (tmp_path / "log").write_text("of an earlier process\n")
    child = fork_child(body, tmp_path / "log")
    ended = []
    assert wait_until(lambda: ended.append(child.poll()) or ended[-1] is not None)
    assert ended[-1].code == code
    assert words in ended[-1].words and "earlier" not in ended[-1].words


def _lists_descriptors(_: int) -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            print("held:", os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the descriptor of the listing itself
    return 5


def _lets_an_object_of_its_parent_go(_: int) -> int:
    """What the parent opened is closed by number when its object goes: a new file must not have it."""
    mine = open(os.devnull)
    PARENTS.clear()
    gc.collect()
    mine.readline()  # raises where it was closed underneath
    return 5


PARENTS: list[object] = []


def test_a_child_holds_none_of_its_parents_files(tmp_path: Path) -> None:
    secret = (tmp_path / "secret").open("w")
    child = fork_child(_lists_descriptors, tmp_path / "log")
    ended = []
    assert wait_until(lambda: ended.append(child.poll()) or ended[-1] is not None)
    secret.close()
    held = {line.partition(": ")[2] for line in ended[-1].words.splitlines() if line.startswith("held")}
    allowed = {"/dev/null", str(tmp_path / "log")}
    assert {name for name in held - allowed if not name.startswith("pipe:")} == set()
    assert len(held) >= 2, "nothing was listed"


def test_an_object_of_the_parent_closes_nothing_of_the_child(tmp_path: Path) -> None:
    PARENTS.append((tmp_path / "parents").open("w"))
    child = fork_child(_lets_an_object_of_its_parent_go, tmp_path / "log")
    ended = []
    assert wait_until(lambda: ended.append(child.poll()) or ended[-1] is not None)
    PARENTS.clear()
    assert ended[-1].code == 5, ended[-1].words
