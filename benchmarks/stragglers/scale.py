"""What decisions and one coordinator cost with 100 to 10,000 workers: the real ones, but no processes.

`python -m benchmarks.stragglers.scale` prints a table. Messages are handed over as the server does it, many
to a flush, on SQLite; sockets and the wire format are not in it.
"""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.common import table
from shoestring.control.controller import ControlConfig, Controller, Facts
from shoestring.control.monitor import Monitor
from shoestring.data.ledger import LedgerSpec
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.checkpoints import DiskKeeper
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.coordinator import Coordinator

SIZES = (100, 1000, 3000, 10_000)
POLICIES = ("nd", "dd", "nd-backup")
ASKED = 5
"""Decisions of which the median is told."""
REPORTS = 20
SAMPLES = 16
"""Of each worker in a step."""
STEPS = 3
TOGETHER = 256
"""Messages that are answered after one flush: where thousands ask at a time, the server's turns have many."""
STEP_S = 1.0


class Unread:
    """A run record that nobody reads."""

    def append(self, kind: str, **fields: Any) -> None:
        """Forget it."""


def measure(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """For each number of workers: a decision of each policy, and the coordinator's time for a step."""
    rows = []
    for count in sizes:
        row: dict[str, Any] = {"workers": count}
        for policy in POLICIES:
            row[f"{policy}_ms"] = round(decision_ms(policy, count), 3)
        rows.append(row | coordinator(count))
    return rows


def decision_ms(policy: str, workers: int) -> float:
    """Milliseconds of a decision, from what the monitor has seen to what is in force; the median of some."""
    rng = random.Random(workers)
    monitor = Monitor(15.0, 300.0)
    controller = Controller(ControlConfig(policy=policy, interval_s=0.0), monitor)
    names = tuple(f"w{number}" for number in range(workers))
    for name in names:
        speed = rng.choice((25.0, 50.0, 100.0))
        controller.usual[name] = 8
        for turn in range(REPORTS):
            samples = 12 + turn % 12
            took_s = (0.01 + samples / speed) * math.exp(rng.gauss(0.0, 0.05))
            monitor.observe(turn * 0.5, name, samples, took_s, -(-samples // 8))
    controller.regroup(names)
    now, took = REPORTS * 0.5, []
    for turn in range(ASKED):
        began_s = perf_counter()
        controller.decide(now + turn, turn + 1, Facts(SAMPLES * workers))
        took.append(1000.0 * (perf_counter() - began_s))
    return statistics.median(took)


def coordinator(workers: int, policy: str = "nd") -> dict[str, Any]:
    """Time that one coordinator spends on a step of so many workers, by message, and of its longest turn."""
    with tempfile.TemporaryDirectory() as folder:
        fleet = _Fleet(Path(folder), workers, policy)
        fleet.begin()
        fleet.step(1)  # the first one decides nothing
        fleet.took_s.clear()
        fleet.messages = 0
        for step in range(2, 2 + STEPS):
            fleet.step(step)
        spent_s = sum(fleet.took_s)
        return {
            "step_ms": round(1000.0 * spent_s / STEPS, 1),
            "message_us": round(1e6 * spent_s / fleet.messages, 1),
            "longest_turn_ms": round(1000.0 * max(fleet.took_s), 1),
            "messages": fleet.messages // STEPS,
        }


class _Fleet:
    """A coordinator and what its workers say."""

    def __init__(self, folder: Path, workers: int, policy: str) -> None:
        config = FleetConfig(
            members=MemberConfig(workers=workers, heartbeat_timeout_s=1e6),
            pace=PaceConfig(batch=SAMPLES * workers),
            checkpoint=CheckpointConfig(every_s=0.0),
            control=ControlConfig(policy=policy),
        )
        spec = LedgerSpec(samples=SAMPLES * workers * (STEPS + 3))
        ledger = DurableLedger.open(f"sqlite:///{folder / 'ledger.db'}", spec)
        self._rng = random.Random(workers)
        self._names = tuple(f"w{number}" for number in range(workers))
        self._now = 0.0
        keeper = DiskKeeper(folder / "checkpoints", 2)
        self._coordinator = Coordinator(config, ledger, keeper, Unread(), self._now, resumed=True)
        self._orders: dict[str, m.Order] = {}
        self._done: dict[str, m.StepReport] = {}
        self.took_s: list[float] = []
        self.messages = 0

    def begin(self) -> None:
        """All join, and form a round."""
        self._turn([m.SupervisorTick()])
        joins = [m.Join(name, 1, -1, micro_batch=8) for name in self._names]
        self._said(joins)
        replies = self._said(joins)
        if not all(isinstance(reply, m.Round) for reply in replies):
            raise AssertionError("the fleet forms no round")

    def step(self, step: int) -> None:
        """All ask for a step, do it, and say so before their exchange."""
        asked = [
            m.Next(name, 1, 1, step - 1, self._done[name] if name in self._done else None)
            for name in self._names
        ]
        for name, reply in zip(self._names, self._said(asked), strict=True):
            if not isinstance(reply, m.Order) or reply.step != step:
                raise AssertionError(f"{name} gets {reply}, no order for step {step}")
            self._orders[name] = reply
        self._now += STEP_S
        told = []
        for name, order in self._orders.items():
            samples = sum(stop - start for start, stop in order.ranges)
            took_s = STEP_S * samples / SAMPLES * math.exp(self._rng.gauss(0.0, 0.05))
            self._done[name] = m.StepReport(samples, took_s, 0.01, metrics={"loss": 1.0})
            if order.tell:
                told.append(m.Ready(name, 1, 1, step, self._done[name]))
        self._said(told)

    def _said(self, requests: Sequence[m.Request]) -> list[m.Reply]:
        replies = []
        for start in range(0, len(requests), TOGETHER):
            replies += self._turn(requests[start : start + TOGETHER])
        return replies

    def _turn(self, requests: Sequence[m.Request]) -> list[m.Reply]:
        began_s = perf_counter()
        replies = [self._coordinator.handle(self._now, request) for request in requests]
        self._coordinator.flush()
        self.took_s.append(perf_counter() - began_s)
        self.messages += len(requests)
        return replies


def show(rows: Sequence[dict[str, Any]]) -> None:
    """As a table."""
    table(
        [
            "workers", *(f"{policy}, ms" for policy in POLICIES), "a step, ms", "a message, us",
            "longest turn, ms",
        ],
        [
            [
                str(row["workers"]), *(f"{row[f'{policy}_ms']:.1f}" for policy in POLICIES),
                f"{row['step_ms']:.0f}", f"{row['message_us']:.0f}", f"{row['longest_turn_ms']:.0f}",
            ]
            for row in rows
        ],
    )  # fmt: skip


def main() -> None:
    """Measure and show."""
    rows = measure()
    show(rows)
    print(json.dumps({str(row["workers"]): row for row in rows}))


if __name__ == "__main__":
    main()
