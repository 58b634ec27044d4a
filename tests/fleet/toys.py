"""Worker mains without tensors for the tests of transports.

`main` counts: its state is one number a sample, a step adds 1 for each sample of the global
batch, and the members tell each other their parts through the coordinator's rendezvous table.
All ones in the end: nothing was lost and nothing doubled.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import traceback
from pathlib import Path
from typing import Any

import msgspec

from shoestring.fleet import messages as m
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.seat import DismissedError, RoundOver, Seat

ENTRY = "tests.fleet.toys:main"


class Toy(msgspec.Struct, frozen=True):
    """`faults`: "name.incarnation.step" or "name.*.step" -> crash, die, stop; see `_fault`."""

    samples: int
    step_s: float = 0.003
    faults: dict[str, str] = {}


def main(context: WorkerContext) -> None:
    toy = msgspec.json.decode(context.payload, type=Toy)
    with Seat(context.name, context.incarnation, context.open_channel, context.clock, context.config) as seat:
        try:
            _Counter(seat, toy, context).run()
        except DismissedError:
            return
        except Exception:
            seat.crashed(traceback.format_exc())
            raise


class _Counter:
    def __init__(self, seat: Seat, toy: Toy, context: WorkerContext) -> None:
        self.seat, self.toy, self.context = seat, toy, context
        self.counts: list[int] = []
        self.step = -1

    def run(self) -> None:
        problem = ""
        while True:
            round_ = self.seat.join(self.step, problem)
            if isinstance(round_, m.Stop):
                return
            try:
                self._enter(round_)
                self._work(round_)
                return
            except RoundOver as over:
                problem = str(over)

    def _enter(self, round_: m.Round) -> None:
        if round_.source_rank < 0:
            file = Path(round_.checkpoint) / "counts.json"
            self.counts = json.loads(file.read_text()) if round_.checkpoint else [0] * self.toy.samples
        else:
            kv = self.seat.kv(round_.round_id)
            if round_.rank == round_.source_rank:
                kv.set("state", json.dumps(self.counts).encode())
            self.counts = json.loads(kv.get("state"))
        self.step = round_.step

    def _work(self, round_: m.Round) -> None:
        kv, report = self.seat.kv(round_.round_id), None
        while True:
            order = self.seat.next(round_.round_id, self.step, report)
            if isinstance(order, m.Stop):
                return
            if isinstance(order, m.Save):
                self.seat.saved(round_.round_id, order.step, self._save(round_, Path(order.directory)))
                continue
            mine = [p for start, end in order.ranges for p in range(start, end)]
            _fault(self.toy.faults, self.context, order.step)
            if "repeat" in self.toy.faults:
                _check_repeats(self.context, round_, self.step, report)
            with self.seat.phase("compute"):
                self.context.clock.sleep(self.toy.step_s)
            with self.seat.phase("exchange"):
                kv.set(f"{order.step}.{round_.rank}", json.dumps(mine).encode())
                parts = [json.loads(kv.get(f"{order.step}.{rank}")) for rank in range(len(round_.members))]
            for position in (p for part in parts for p in part):
                self.counts[position] += 1
            self.step = order.step
            report = m.StepReport(len(mine), self.toy.step_s, 0.0, counts={"samples": float(order.batch)})

    def _save(self, round_: m.Round, directory: Path) -> dict[str, tuple[int, str]]:
        if round_.rank != 0:
            return {}
        data = json.dumps(self.counts).encode()
        (directory / "counts.json").write_bytes(data)
        return {"counts.json": (len(data), hashlib.sha256(data).hexdigest())}


def _fault(faults: dict[str, str], context: WorkerContext, step: int) -> None:
    for incarnation in (str(context.incarnation), "*"):
        fault = faults.get(f"{context.name}.{incarnation}.{step}")
        if fault == "crash":
            raise RuntimeError(f"no luck with step {step}")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)


def _check_repeats(context: WorkerContext, round_: m.Round, step: int, report: m.StepReport | None) -> None:
    """Ask everything twice, also on a second line: the answers must be the same."""
    first, second = context.open_channel(), context.open_channel()
    request: Any = m.Next(context.name, context.incarnation, round_.round_id, step, report)
    orders = [first.call(request), first.call(request), second.call(request)]
    add = m.KvAdd(round_.round_id, f"adds.{step}", 5, f"{context.name}.{step}")
    first.call(add)
    totals = [first.call(add), second.call(add)]
    waits = first.call(m.KvGet(round_.round_id, f"nobody sets this {step}"))
    first.close()
    second.close()
    if not (isinstance(orders[0], m.Order) and orders[0] == orders[1] == orders[2]):
        raise AssertionError(f"a repeated request was answered otherwise: {orders}")
    if totals[0] != totals[1]:
        raise AssertionError(f"a repeated add counted twice: {totals}")
    if not isinstance(waits, m.Wait):
        raise AssertionError(f"a value that is not there was answered by {waits}")
