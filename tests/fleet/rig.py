"""A coordinator by hand: every message sent by the test, time from a fake clock."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from shoestring.data.ledger import LedgerSpec
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.checkpoints import DiskKeeper
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.fleet.coordinator import Coordinator

Delivery = Literal["at_least_once", "at_most_once"]


class Events:
    """A run record in memory."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def append(self, kind: str, **fields: Any) -> None:
        self.all.append({"kind": kind, **fields})

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.all if event["kind"] == kind]


class Rig:
    """A coordinator with its surroundings; `tick` plays the supervisor."""

    def __init__(
        self,
        root: Path,
        samples: int = 32,
        workers: int = 2,
        delivery: Delivery = "at_least_once",
        **changes: Any,
    ) -> None:
        settings = {
            "members": MemberConfig(workers=workers, backoff_s=0.1, heartbeat_timeout_s=10.0),
            "pace": PaceConfig(batch=8),
            "checkpoint": CheckpointConfig(every_s=0.0),
        }
        self.config = FleetConfig(**(settings | changes))
        self.spec = LedgerSpec(
            samples=samples, shuffle="none", max_attempts=2, max_dead_share=0.1, delivery=delivery
        )
        self.ledger = DurableLedger.open("sqlite://", self.spec)
        self.keeper = DiskKeeper(root / "checkpoints", 2)
        self.events = Events()
        self.now = 0.0
        self.exits: tuple[m.Exit, ...] = ()
        self.alive: tuple[tuple[str, int], ...] = ()
        self.restart(resumed=True)

    def restart(self, resumed: bool = False) -> None:
        self.coordinator = Coordinator(
            self.config, self.ledger, self.keeper, self.events, self.now, resumed=resumed
        )

    def send(self, request: m.Request) -> m.Reply:
        self.now += 0.001
        reply = self.coordinator.handle(self.now, request)
        self.coordinator.flush()
        self.ledger.check()
        return reply

    def tick(self, *exits: m.Exit, interrupt: bool = False, after_s: float = 0.0) -> m.SupervisorOrders:
        self.now += after_s
        reply = self.send(m.SupervisorTick(self.alive, exits, interrupt))
        assert isinstance(reply, m.SupervisorOrders)
        self.alive = (
            *(p for p in self.alive if p not in {(e.worker, e.incarnation) for e in exits}),
            *reply.spawn,
        )
        return reply

    def join(self, worker: str, step: int = -1, last_round: int = -1, incarnation: int = 1) -> m.Reply:
        return self.send(m.Join(worker, incarnation, step, last_round))

    def next(
        self, worker: str, step: int, round_id: int = 1, incarnation: int = 1, samples: int = 4
    ) -> m.Reply:
        report = m.StepReport(samples, 0.5, 0.1, counts={"tokens": 8.0}) if step else None
        return self.send(m.Next(worker, incarnation, round_id, step, report))

    def begin(self) -> None:
        """Both workers in round 1 at step 0."""
        self.tick()
        self.join("w0")
        round_ = self.join("w1")
        assert isinstance(round_, m.Round) and (round_.round_id, round_.rank, round_.source_rank) == (
            1,
            1,
            -1,
        )
        again = self.join("w0")
        assert isinstance(again, m.Round) and again.rank == 0 and again.step == 0

    def step(self, step: int, round_id: int = 1) -> None:
        """Both ask for the order after `step` and get one."""
        for worker in ("w0", "w1"):
            reply = self.next(worker, step, round_id)
            assert isinstance(reply, m.Order) and reply.step == step + 1

    def done(self) -> int:
        return self.ledger.counts().done


def positions(order: m.Reply) -> list[int]:
    assert isinstance(order, m.Order)
    return [p for start, stop in order.ranges for p in range(start, stop)]


def save(rig: Rig, reply: m.Reply, worker: str, round_id: int = 1, incarnation: int = 1) -> m.Reply:
    assert isinstance(reply, m.Save)
    data = f"{worker} {reply.step}".encode()
    (Path(reply.directory) / worker).write_bytes(data)
    files = {worker: (len(data), hashlib.sha256(data).hexdigest())}
    return rig.send(m.Saved(worker, incarnation, round_id, reply.step, files))
