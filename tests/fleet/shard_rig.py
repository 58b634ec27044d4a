"""A shard coordinator by hand: messages sent by the test, time from a fake clock, a sink in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shoestring.base.errors import FleetError
from shoestring.data.ledger import LedgerSpec
from shoestring.data.output_state import Output, Staged
from shoestring.data.sink_config import SinkConfig
from shoestring.data.store import DurableLedger
from shoestring.data.stores import MemoryStore
from shoestring.fleet import messages as m
from shoestring.fleet.config import FleetConfig, MemberConfig
from shoestring.fleet.outputs_spec import OutputsSpec
from shoestring.fleet.publisher import Publisher
from shoestring.fleet.shards import ShardCoordinator
from tests.fleet.rig import Events

Rows = dict[int, str]
"""Position -> error text; empty: it has none."""


class Died(Exception):
    """The coordinator's process was killed at this point."""


class FakeSink:
    """Files in memory.

    Attributes:
        staged, published: name -> rows.
        broken: the error that publishing meets.
        die_at: publishing dies when this counts down to 0.
    """

    def __init__(self) -> None:
        self.staged: dict[str, Rows] = {}
        self.published: dict[str, Rows] = {}
        self.finished: dict[str, Any] | None = None
        self.broken = ""
        self.die_at = -1

    def stage(self, name: str, rows: Rows) -> Staged:
        self.staged[name] = rows
        failed = [error for error in rows.values() if error]
        errors = {error: failed.count(error) for error in set(failed)}
        return Staged(name, len(rows), len(failed), errors=errors)

    def open(self, committed: Iterable[Output], sweep: bool) -> list[str]:
        done = []
        for output in committed:
            if output.name not in self.published:
                self.publish(output)
                done.append(f"published {output.name}")
        if sweep:
            done += [f"removed {name}" for name in self.staged]
            self.staged.clear()
        return done

    def publish(self, output: Output) -> None:
        if self.broken:
            raise FleetError(self.broken, "free some space")
        self.die_at -= 1
        if self.die_at == 0:
            raise Died
        if output.name in self.published:
            return
        assert output.staged.name in self.staged, f"{output} is committed, and its staged file is gone"
        self.published[output.name] = self.staged.pop(output.staged.name)

    def finish(self, facts: dict[str, Any]) -> None:
        self.finished = facts
        self.staged.clear()

    def rows(self) -> list[tuple[int, str]]:
        """All published rows, in order."""
        return sorted(item for rows in self.published.values() for item in rows.items())


class ShardRig:
    """A coordinator with its surroundings; `tick` plays the supervisor."""

    def __init__(self, rows: int = 100, shard_rows: int = 10, workers: int = 2, **changes: Any) -> None:
        members = {"backoff_s": 0.1, "heartbeat_timeout_s": 10.0, "start_timeout_s": 30.0}
        spec = {"max_error_share": 1.0, "min_errors": 0, "drain_s": 5.0}
        for key, value in changes.items():
            (spec if key in OutputsSpec.__dataclass_fields__ else members)[key] = value
        self.config = FleetConfig(members=MemberConfig(workers=workers, **members))
        self.outputs = OutputsSpec(SinkConfig(path="/sink"), "job", shard_rows, **spec)
        self.spec = LedgerSpec(samples=rows, shuffle="none", max_attempts=2, max_dead_share=1.0)
        self.store = MemoryStore()
        self.sink = FakeSink()
        self.events = Events()
        self.now = 0.0
        self.alive: tuple[tuple[str, int], ...] = ()
        self.restart(resumed=True)

    def restart(self, resumed: bool = False) -> None:
        """The coordinator's process is gone, a new one comes up; with `resumed` no worker lives either."""
        if resumed:
            self.alive = ()
        self.ledger = DurableLedger.open(self.store, self.spec)
        self.coordinator = ShardCoordinator(
            self.config, self.outputs, self.ledger, Publisher(self.sink), self.events, self.now, resumed
        )
        self.coordinator.flush()

    def send(self, request: m.Request, flush: bool = True) -> m.Reply:
        self.now += 0.001
        reply = self.coordinator.handle(self.now, request)
        if flush:
            self.coordinator.flush()
            self.ledger.check()
        return reply

    def tick(
        self, *exits: m.Exit, interrupt: bool = False, after_s: float = 0.0, **told: Any
    ) -> m.SupervisorOrders:
        self.now += after_s
        reply = self.send(m.SupervisorTick(self.alive, exits, interrupt, **told))
        assert isinstance(reply, m.SupervisorOrders)
        ended = {(one.worker, one.incarnation) for one in exits}
        self.alive = (*(one for one in self.alive if one not in ended), *reply.spawn)
        return reply

    def wait(self, seconds: float, *living: str, incarnation: int = 1) -> None:
        """Time passes; these workers give signs of life."""
        until_s = self.now + seconds
        while self.now < until_s:
            self.now += 1.0
            for worker in living:
                self.send(m.Heartbeat(worker, incarnation, -1, "compute", 0.0))
            self.tick()

    def lease(self, worker: str, request: int = 1, incarnation: int = 1) -> m.Reply:
        return self.send(m.ShardLease(worker, incarnation, request))

    def shard(self, worker: str, request: int = 1, incarnation: int = 1) -> m.Shard:
        reply = self.lease(worker, request, incarnation)
        assert isinstance(reply, m.Shard), reply
        return reply

    def stage(self, worker: str, shard: m.Shard, failures: Rows | None = None) -> Staged:
        rows = {at: "" for start, stop in shard.ranges for at in range(start, stop)}
        rows |= {at: text for at, text in (failures or {}).items() if at in rows} | shard.verdicts
        return self.sink.stage(f"{worker}-{shard.lease_id}.parquet", rows)

    def done(self, worker: str, shard: m.Shard, incarnation: int = 1, failures: Rows | None = None) -> str:
        staged = self.stage(f"{worker}.{incarnation}", shard, failures)
        return self.report(worker, shard, staged, incarnation)

    def report(self, worker: str, shard: m.Shard, staged: Staged, incarnation: int = 1) -> str:
        reply = self.send(m.ShardDone(worker, incarnation, shard.lease_id, staged))
        assert isinstance(reply, m.DoneReply), reply
        return reply.outcome

    def tell(self, worker: str, incarnation: int = 1, **told: Any) -> m.ShardOrders:
        reply = self.send(m.ShardTold(worker, incarnation, **told))
        assert isinstance(reply, m.ShardOrders), reply
        return reply

    def work_off(self, *workers: str, incarnation: int = 1, request: int = 1000) -> None:
        """These workers do all that is left."""
        while True:
            replies = {worker: self.lease(worker, request, incarnation) for worker in workers}
            shards = {worker: reply for worker, reply in replies.items() if isinstance(reply, m.Shard)}
            if not shards:
                return
            for worker, shard in shards.items():
                assert self.done(worker, shard, incarnation) == "counted"
            request += 1


def positions(shard: m.Shard) -> list[int]:
    return [at for start, stop in shard.ranges for at in range(start, stop)]
