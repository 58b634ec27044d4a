"""Nothing lost, nothing doubled while processes are stopped (SIGSTOP) and go on, at seeded moments.

For less time than silence is suffered, and for more: a stopped process that goes on is the worst kind of
dead, since it acts again.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from pathlib import Path

import pytest

from shoestring.base.clock import Clock
from shoestring.fleet.launch import Launch
from shoestring.train.config import ShardingConfig
from tests.seeds import few
from tests.train.test_counting_under_kills import ChaosHost, check_all_ones


class FreezingHost(ChaosHost):
    """Stops a worker or the coordinator for a while, where ChaosHost kills."""

    shortest_s, longest_s = 0.05, 0.5

    def __init__(self, launch: Launch, clock: Clock, seed: int) -> None:
        super().__init__(launch, clock, seed)
        self._lengths = random.Random(f"lengths {seed}")

    def _kill_something(self) -> None:
        names = [name for name, _ in sorted(self.alive())]
        whom = self._random.choice(["coordinator", *names])
        self._stop(whom, self._lengths.uniform(self.shortest_s, self.longest_s))

    def _stop(self, whom: str, length_s: float) -> None:
        pid = self.coordinator_pid if whom == "coordinator" else self.worker_pid(whom)
        if pid:
            freeze(pid, length_s)
            self.killed.append(f"{whom} was stopped")


class LongFreezingHost(FreezingHost):
    """For longer than a silence of one second is suffered."""

    shortest_s, longest_s = 1.5, 4.0


class OneMinuteHost(FreezingHost):
    """Stops one worker for a minute, once."""

    whom = "w1"

    def _kill_something(self) -> None:
        if not self.killed:
            self._stop(self.whom, 60.0)


class CoordinatorsMinuteHost(OneMinuteHost):
    """Stops the coordinator instead."""

    whom = "coordinator"


def freeze(pid: int, length_s: float) -> None:
    """Stop a process; it goes on after a while, if it is still there. By its descriptor, since numbers are
    used again."""
    with contextlib.suppress(ProcessLookupError):
        which = os.pidfd_open(pid)
        signal.pidfd_send_signal(which, signal.SIGSTOP)
        timer = threading.Timer(length_s, go_on, [which])
        timer.daemon = True
        timer.start()


def go_on(which: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(which, signal.SIGCONT)
    os.close(which)


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(1, 2))
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_while_processes_stop_for_a_moment(tmp_path: Path, strategy: str, seed: int) -> None:
    log = check_all_ones(tmp_path, seed, 3, ShardingConfig(strategy=strategy), harm=FreezingHost)
    hung = [event["reason"] for event in log.of("fault") if "hung" in event["reason"]]
    assert not hung, "so short a stop is no reason to take anybody for hung"


@pytest.mark.faults
@pytest.mark.parametrize("seed", few(1, 2))
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_while_processes_stop_for_long(tmp_path: Path, strategy: str, seed: int) -> None:
    log = check_all_ones(
        tmp_path, seed, 3, ShardingConfig(strategy=strategy), harm=LongFreezingHost,
        heartbeat_timeout_s=1.0, hang_timeout_s=2.0,
    )  # fmt: skip
    reasons = [event["reason"] for event in log.of("fault")]
    assert any("hung" in reason or "came back" in reason for reason in reasons), reasons


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("harm", [OneMinuteHost, CoordinatorsMinuteHost])
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_where_one_stops_for_a_minute(
    tmp_path: Path, strategy: str, harm: type[OneMinuteHost]
) -> None:
    log = check_all_ones(tmp_path, 0, 3, ShardingConfig(strategy=strategy), harm=harm)
    hung = [event["reason"] for event in log.of("fault") if "hung" in event["reason"]]
    assert len(hung) == (0 if harm is CoordinatorsMinuteHost else 1), hung


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("staleness", [0, -1])
@pytest.mark.parametrize("harm", [FreezingHost, LongFreezingHost])
def test_all_ones_while_servers_and_their_workers_stop(
    tmp_path: Path, harm: type[FreezingHost], staleness: int, seed: int
) -> None:
    log = check_all_ones(
        tmp_path, seed, 3, ShardingConfig(), harm=harm, servers=2, staleness=staleness,
        heartbeat_timeout_s=1.0, hang_timeout_s=2.0,
    )  # fmt: skip
    assert log.of("step")


class ServersMinuteHost(OneMinuteHost):
    """Stops a server instead."""

    whom = "s0"


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.parametrize("harm", [OneMinuteHost, ServersMinuteHost, CoordinatorsMinuteHost])
def test_all_ones_where_one_of_a_served_fleet_stops_for_a_minute(
    tmp_path: Path, harm: type[OneMinuteHost]
) -> None:
    log = check_all_ones(tmp_path, 0, 3, ShardingConfig(), harm=harm, servers=2, staleness=-1)
    hung = [event["reason"] for event in log.of("fault") if "hung" in event["reason"]]
    assert len(hung) == (0 if harm is CoordinatorsMinuteHost else 1), hung
