"""A worker main of a job over rows without an engine: it writes each row's position, in real files."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
import pyarrow as pa

from shoestring.base.errors import TransportError
from shoestring.data.output_state import Staged
from shoestring.data.outputs import Staging
from shoestring.data.sink_config import SinkConfig
from shoestring.fleet import messages as m
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.seat import DismissedError
from shoestring.fleet.shard_seat import ShardSeat

ENTRY = "tests.fleet.shard_toys:main"
SCHEMA = pa.schema([("row", pa.int64()), ("error", pa.string())])
RETRY_S = 0.02
T = TypeVar("T")


class Toy(msgspec.Struct, frozen=True):
    """`faults`: "name.incarnation.number" -> what happens with that shard of the process: `die` (with it),
    `die staging`, `die staged`, `die counted`, `crash`, `stop`, `broken`, `told to go`. `poison`: positions
    that kill."""

    sink: str
    row_s: float = 0.0
    ahead: int = 2
    faults: dict[str, str] = {}
    poison: tuple[int, ...] = ()


def main(context: WorkerContext) -> None:
    toy = msgspec.json.decode(context.payload, type=Toy)
    seat = ShardSeat(context.name, context.incarnation, context.open_channel, context.clock, context.config)
    with seat:
        try:
            _Worker(context, toy, seat).run()
        except DismissedError:
            return
        except Exception:
            seat.crashed(traceback.format_exc())
            raise


class _Worker:
    def __init__(self, context: WorkerContext, toy: Toy, seat: ShardSeat) -> None:
        self.context, self.toy, self.seat = context, toy, seat
        self.staging = Staging(SinkConfig(path=toy.sink), "toy")
        self.shards: list[m.Shard] = []
        self.number = 0
        self.notice = ""

    def run(self) -> None:
        over = False
        while not over or self.shards:
            orders = self._again(lambda: self.seat.tell(begun=1, notice=self.notice))
            back = len(self.shards) if orders.leave_s >= 0 else min(orders.give_back, len(self.shards) - 1)
            for _ in range(back):
                lease_id = self.shards.pop().lease_id
                self._again(partial(self.seat.give_back, lease_id, orders.reason))
            over = over or orders.leave_s >= 0
            while not over and len(self.shards) < self.toy.ahead:
                reply = self._again(self.seat.lease)
                over = isinstance(reply, m.Stop)
                if not isinstance(reply, m.Shard):
                    break
                self.shards.append(reply)
            if self.shards:
                self._work(self.shards[0])
                self.shards.pop(0)
            else:
                self.context.clock.sleep(RETRY_S)

    def _work(self, shard: m.Shard) -> None:
        self.number += 1
        key = f"{self.context.name}.{self.context.incarnation}.{self.number}"
        fault = self.toy.faults[key] if key in self.toy.faults else ""
        positions = [at for start, stop in shard.ranges for at in range(start, stop)]
        self._early(fault, positions, shard)
        writer = self.staging.writer(shard.lease_id, key, SCHEMA)
        for at in positions:
            self.context.clock.sleep(self.toy.row_s)
            text = shard.verdicts[at] if at in shard.verdicts else None
            writer.write(pa.table({"row": [at], "error": [text]}, schema=SCHEMA))
            if fault == "die staging":
                _die()
        staged = writer.close()
        if fault == "die staged":
            _die()
        outcome = self._again(lambda: self._done(shard, staged))
        if outcome == "late":
            self.staging.discard(staged)
        if fault == "die counted":
            _die()

    def _early(self, fault: str, positions: list[int], shard: m.Shard) -> None:
        if fault == "die" or (set(self.toy.poison) & set(positions) and not shard.verdicts):
            _die()
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if fault == "crash":
            raise RuntimeError(f"no luck with row {positions[0]}")
        if fault == "broken":
            self._again(lambda: self.seat.broken(f"ZeroDivisionError in row {positions[0]}", "mend the toy"))
        if fault == "told to go":
            self.notice = "SIGTERM"

    def _done(self, shard: m.Shard, staged: Staged) -> str:
        return self.seat.done(shard.lease_id, staged)

    def _again(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return call()
            except TransportError:
                self.context.clock.sleep(RETRY_S)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
