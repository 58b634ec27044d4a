"""However a lab ends, nothing of it is left: no process, namespace, link or cgroup."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.lab import Lab, LabConfig
from shoestring.base.clock import SystemClock
from tests.benchmarks.lab_helpers import (
    ROOT,
    cgroups_of,
    holders,
    links,
    namespaces_of,
    needs_lab,
    processes_of,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.faults, needs_lab]
# A child in the rank's session, one that left it, and a rank that waits for both.
CLINGING = "sleep 300 & setsid sleep 300 & echo up; wait"


@dataclass(frozen=True)
class Traces:
    """Of a living lab: its name or the beginning of it, its namespaces, and our own links before."""

    name: str
    namespaces: set[int]
    links: set[str]

    def check_gone(self) -> None:
        """Within seconds."""
        assert wait_until(lambda: not processes_of(self.name)), processes_of(self.name)
        assert wait_until(lambda: not holders(self.namespaces)), holders(self.namespaces)
        assert wait_until(lambda: not cgroups_of(self.name)), cgroups_of(self.name)
        assert links() == self.links


@contextmanager
def command_line(*words: str) -> Iterator[tuple[subprocess.Popen[str], Traces]]:
    """The lab as a command of its own, on two hosts with all that leaves traces, once both ranks are up."""
    before = links()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.lab", "--delay=1ms", "--cpu=0.5", "--inter=100mbit", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    name = f"shoelab-{process.pid}-"
    try:
        assert process.stdout is not None
        assert sorted(process.stdout.readline() for _ in range(2)) == ["[0] up\n", "[1] up\n"]
        kinds = ("reaper.py", "relay.py", "sleep 300", CLINGING)

        def counts() -> list[int]:
            return [sum(kind in words for words in processes_of(name).values()) for kind in kinds]

        # A shell's child goes by the shell's words until it has become `sleep`.
        assert wait_until(lambda: counts() == [1, 1, 6, 2]), counts()
        namespaces = namespaces_of([*processes_of(name)])
        assert len(namespaces) == 3 and process.pid in holders(namespaces)  # two hosts and the switch
        assert len(cgroups_of(name)) == 1
        yield process, Traces(name, namespaces, before)
    finally:
        process.kill()
        process.wait()
        process.stdout.close() if process.stdout else None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    with command_line("--", "sh", "-c", CLINGING) as (process, traces):
        process.send_signal(number)
        assert process.wait(timeout=10) == (-9 if number == signal.SIGKILL else 128 + number)
        traces.check_gone()


def test_the_lab_and_its_reaper_killed_together_are_swept_by_the_next_start() -> None:
    with command_line("--", "sh", "-c", CLINGING) as (process, traces):
        reapers = [pid for pid, words in processes_of(traces.name).items() if "reaper.py" in words]
        for pid in (*reapers, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        with Lab(LabConfig(hosts=1)):
            traces.check_gone()


def test_a_time_out_and_a_failure_end_every_rank() -> None:
    clock = SystemClock()
    start_s = clock.now()
    with Lab(LabConfig(hosts=2, ranks=2)) as lab:
        late = lab.run(["sleep", "300"], timeout_s=0.2)
        assert (late.code, late.why) == (124, "not done after 0.2 s")
        assert not any("sleep" in words for words in processes_of(lab.name).values())
        fail = 'echo "rank $RANK"; if [ $RANK = 2 ]; then exit 7; fi; sleep 300'
        result = lab.run(["sh", "-c", fail], timeout_s=60)
        assert (result.code, result.codes[2], result.why) == (7, 7, "rank 2 ended with 7")
        assert [code for rank, code in enumerate(result.codes) if rank != 2] == [-signal.SIGTERM] * 3
        assert "rank 2" in result.outputs[2]
    assert clock.now() - start_s < 5
    assert not processes_of(lab.name) and not cgroups_of(lab.name)


def test_a_rank_that_ignores_sigterm_is_killed() -> None:
    with Lab(LabConfig(hosts=2)) as lab:
        stubborn = 'trap "" TERM; if [ $RANK = 0 ]; then sleep 0.2; exit 3; fi; while true; do sleep 1; done'
        result = lab.run(["sh", "-c", stubborn], timeout_s=60, grace_s=0.2)
    assert result.codes == (3, -signal.SIGKILL) and result.code == 3


def test_an_error_inside_the_block_leaves_nothing_either() -> None:
    before = links()
    with pytest.raises(ZeroDivisionError), Lab(LabConfig(hosts=2, cpu=(0.5,), delay_ms=1.0)) as lab:
        lab.spawn(0, ["sh", "-c", CLINGING], stdout=subprocess.DEVNULL)
        namespaces = {os.stat(host.netns_path).st_ino for host in lab.hosts}
        assert cgroups_of(lab.name)
        raise ZeroDivisionError
    Traces(lab.name, namespaces, before).check_gone()


def test_a_killed_reaper_is_stood_in_for() -> None:
    before = links()
    with Lab(LabConfig(hosts=2)) as lab:
        lab.spawn(1, ["sh", "-c", CLINGING], stdout=subprocess.DEVNULL)
        namespaces = {os.stat(host.netns_path).st_ino for host in lab.hosts}
        (reaper,) = [pid for pid, words in processes_of(lab.name).items() if "reaper.py" in words]
        os.kill(reaper, signal.SIGKILL)
    Traces(lab.name, namespaces, before).check_gone()


def test_the_command_line_says_which_rank_wrote_what_counts_and_ends_as_the_rank_did(tmp_path: Path) -> None:
    file = tmp_path / "lab.json"
    talk = "printf 'one\\ntwo'; exit 5"
    words = ["--hosts", "2", "--json", str(file), "--", "sh", "-c", talk]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lab", *words], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 5, done.stderr
    written = json.loads(file.read_text())
    (first,) = re.findall(r"^rank (\d) ended with 5$", written["why"])
    assert written["codes"][int(first)] == 5 and written["code"] == 5
    assert (
        {f"[{first}] one", f"[{first}] two"}
        <= {*done.stdout.splitlines()}
        <= {f"[{rank}] {word}" for rank in (0, 1) for word in ("one", "two")}
    )
    assert "10.77.0.2" in done.stderr
    assert [host["address"] for host in written["hosts"]] == ["10.77.0.1", "10.77.0.2"]


def test_nonsense_is_refused_before_anything_is_built() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.lab", "--inter", "fast", "--", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2 and "200mbit" in done.stderr and "Traceback" not in done.stderr
