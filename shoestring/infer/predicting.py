"""A stage's side: batches out of shared memory, the user's code, answers into it (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.answers import Made, normalised
from shoestring.infer.batch import Batch, StreamStage
from shoestring.infer.graph import Node, nearest
from shoestring.infer.schemas import check_names, marked
from shoestring.infer.shared import Segments
from shoestring.infer.talk import Gone, Line
from shoestring.infer.telling import Meter, closed, let_go, raised
from shoestring.infer.wire import Cost, Orders, Predict, Predicted, Ref


@dataclass(frozen=True)
class Answered:
    """An answer in shared memory: items, bytes of the segment (0: there is none), see Predicted."""

    rows: int
    size_bytes: int
    counts: bytes
    errors: dict[int, str]


class Batches:
    """Batches of one stage, and its answers to them.

    Args:
        node: the stage.
        agreed: its own columns, from the trial; None: types are as they come.
    """

    def __init__(self, node: Node, segments: Segments, agreed: pa.Schema | None) -> None:
        self.node = node
        self._segments = segments
        self._agreed = agreed

    def gather(self, order: Predict) -> pa.Table:
        """The items of an order, all columns of them; views of shared memory.

        Raises:
            ConfigError: a column that the stage reads is not there.
        """
        held: dict[str, pa.Table] = {}
        slices = []
        for part in order.parts:
            if part.segment not in held:
                held[part.segment] = self._segments.read(part.segment).replace_schema_metadata(None)
            slices.append(_slice(held[part.segment], part))
        table = slices[0] if len(slices) == 1 else _joined(slices)
        for column in self.node.reads:
            if column not in table.column_names:
                raise ConfigError(
                    f"stage {self.node.name} reads a column {column!r}, which nothing before it has",
                    nearest(column, table.column_names),
                )
        return table

    def given(self, table: pa.Table) -> Batch:
        """What the stage sees of gathered items."""
        return Batch(table.select(list(self.node.reads)) if self.node.reads else table)

    def finish(self, order: Predict, table: pa.Table, result: Any) -> Answered:
        """Write an answer, with what stages further down need of the items it is made from.

        Raises:
            InferError: the answer makes no sense.
            ConfigError: one of its columns is called as one that came in.
        """
        made = normalised(result, table.num_rows, self._agreed, self.node.name)
        check_names(self.node.name, made.table.column_names, table.column_names)
        answer = self._with_inherited(made, table)
        counts = b"" if made.counts is None else made.counts.astype("<i4").tobytes()
        if not answer.num_columns:
            return Answered(0, 0, counts, made.errors)
        size_bytes = self._segments.write(order.segment, answer)
        return Answered(answer.num_rows, size_bytes, counts, made.errors)

    def _with_inherited(self, made: Made, table: pa.Table) -> pa.Table:
        node = self.node
        if node.leaf:
            names = []
        else:
            names = [name for name in table.column_names if node.passes is None or name in node.passes]
        inherited = table.select(names)
        if made.counts is not None and names:
            owners = np.repeat(np.arange(table.num_rows), made.counts)
            inherited = inherited.combine_chunks().take(pa.array(owners))
        schema = marked(made.table.schema, inherited.schema, made.counts is not None)
        if made.empty:  # all of them failed, and nothing says which columns there would have been
            return inherited.cast(schema) if names else pa.table({})
        return pa.Table.from_arrays([*made.table.columns, *inherited.columns], schema=schema)


class Predictor:
    """A stage that takes one batch at a time."""

    def __init__(self, batches: Batches, stage: Any, meter: Meter) -> None:
        self._batches = batches
        self._stage = stage
        self._meter = meter

    def do(self, order: Predict) -> Predicted:
        """One batch, from shared memory to shared memory.

        Raises:
            InferError, ConfigError: see `Batches`; whatever the user's code raises.
        """
        self._meter.start()
        table = self._batches.gather(order)
        result = self._stage(self._batches.given(table))
        done = self._batches.finish(order, table, result)
        cost = self._meter.cost()
        return Predicted(order.task, done.rows, done.size_bytes, done.counts, done.errors, cost)

    def close(self) -> None:
        """Close the stage, where it wants that."""
        _close(self._stage)


@dataclass
class _Open:
    order: Predict
    table: pa.Table


class Streamer:
    """A stage that works on many batches at a time; orders are taken in while it does.

    Args:
        make: makes the stage anew: one that raised from `work` is not to be trusted.
    """

    def __init__(
        self, batches: Batches, stage: StreamStage, make: Callable[[], StreamStage], meter: Meter
    ) -> None:
        self._batches = batches
        self._stage: StreamStage | None = stage
        self._make = make
        self._meter = meter
        self._open: dict[int, _Open] = {}
        self._spent_s = 0.0
        self._spent_cpu_s = 0.0

    @property
    def room(self) -> int:
        """Items that the stage would take now."""
        return -1 if self._stage is None else int(self._stage.room)

    def close(self) -> None:
        """Close the stage, where it wants that."""
        if self._stage is not None:
            _close(self._stage)
            self._stage = None

    def serve(self, line: Line[Orders]) -> None:
        """Until the engine hangs up and all is through, or the stage cannot be made again after a failure.

        Raises:
            Gone: nobody listens.
        """
        over = False
        while self._stage is not None and not (over and not self._open):
            try:
                orders = [] if over else line.receive(0.0 if self._open else None)
            except Gone:
                over, orders = True, []
            for order in orders:
                if not isinstance(order, Predict):
                    raise InferError(
                        "a stage was told to do something else", "this is a bug: tell its makers"
                    )
                self._begin(line, order, self._stage)
            if self._open:
                self._go_on(line, self._stage)

    def _begin(self, line: Line[Orders], order: Predict, stage: StreamStage) -> None:
        self._meter.start()
        try:
            table = self._batches.gather(order)
            self._open[order.task] = _Open(order, table)
            stage.take(order.task, self._batches.given(table))
        except BaseException as error:  # noqa: BLE001  told to the engine, whatever it is
            self._open.pop(order.task, None)
            line.send(raised(order.task, error, "stage"))
        self._count()

    def _go_on(self, line: Line[Orders], stage: StreamStage) -> None:
        self._meter.start()
        try:
            through = stage.work()
            for ticket, _ in through:
                if ticket not in self._open:
                    raise InferError(
                        f"stage {self._batches.node.name} is through with a batch {ticket} that it has not",
                        "return each ticket once",
                    )
        except BaseException as error:  # noqa: BLE001  told to the engine, whatever it is
            self._start_anew(line, error)
            return
        done: list[tuple[_Open, Answered]] = []
        for ticket, answer in through:
            one = self._open.pop(ticket)
            try:
                done.append((one, self._batches.finish(one.order, one.table, answer)))
            except BaseException as error:  # noqa: BLE001  told to the engine, whatever it is
                line.send(raised(ticket, error, "stage"))
        cost = self._count()
        items = sum(one.table.num_rows for one, _ in done)
        for one, answered in done:
            part = one.table.num_rows / items if items else 1 / len(done)
            line.send(
                Predicted(
                    one.order.task,
                    answered.rows,
                    answered.size_bytes,
                    answered.counts,
                    answered.errors,
                    Cost(self._spent_s * part, self._spent_cpu_s * part, cost.memory_bytes, cost.gpu),
                    self.room,
                )
            )
        if done:
            self._spent_s = self._spent_cpu_s = 0.0

    def _count(self) -> Cost:
        """Work on many batches at a time is shared out to those that are through; no second counts twice."""
        cost = self._meter.cost()
        self._spent_s += cost.took_s
        self._spent_cpu_s += cost.cpu_s
        return cost

    def _start_anew(self, line: Line[Orders], error: BaseException) -> None:
        """Nobody knows which batch it was: all fail, and the engine tries them apart."""
        said = [raised(ticket, error, "stage") for ticket in self._open]
        self._open.clear()
        self.close()
        let_go(said[0].kind == "memory")
        for reply in said:
            line.send(reply)
        try:
            self._stage = self._make()
        except BaseException as again:  # noqa: BLE001  told to the engine, whatever it is
            line.send(raised(-1, again, "stage"))


def _slice(table: pa.Table, part: Ref) -> pa.Table:
    if part.start == 0 and part.stop == table.num_rows:
        return table
    return table.slice(part.start, part.stop - part.start)


def _joined(slices: list[pa.Table]) -> pa.Table:
    same = all(one.schema.equals(slices[0].schema) for one in slices[1:])
    return pa.concat_tables(slices, promote_options="none" if same else "permissive")


def _close(stage: Any) -> None:
    if hasattr(stage, "close"):
        closed(stage.close)
