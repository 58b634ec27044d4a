"""Stages and a source for tests of a worker's children."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from shoestring.data.row_index import RowIndex, RowSourceConfig
from shoestring.data.sink_config import SinkConfig
from shoestring.infer import child
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.births import Birth, Settings
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.nursery import Kid
from shoestring.infer.talk import Line
from shoestring.infer.wire import InferPayload, Orders, Replies


def double(batch: Batch) -> dict[str, Any]:
    """Twice each number, unless it is a disaster."""
    for number in batch["n"].tolist():
        if number == 90:
            raise ValueError("no 90,\nplease: s3://me:secret@bucket/x")
        if number == 91:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 92:
            signal.pause()
        if number == 93:
            raise MemoryError("too much")
        if number == 94:
            print("said on stdout")
            sys.exit("left")
        if number == 95:
            subprocess.Popen(["sleep", "600"])
            os._exit(3)
        if number == 96:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB")
    return {"twice": batch["n"] * 2}


class Slow:
    """A stream: one item a turn, whichever batch it is of; 90 raises from `work`."""

    def __init__(self) -> None:
        self.open: dict[int, list[int]] = {}
        self.made: dict[int, list[int]] = {}

    @property
    def room(self) -> int:
        """Eight items in all."""
        return 8 - sum(len(one) for one in self.open.values())

    def take(self, ticket: int, batch: Batch) -> None:
        """One more batch."""
        self.open[ticket], self.made[ticket] = batch["n"].tolist(), []

    def work(self) -> list[tuple[int, Answer]]:
        """One item of each."""
        through = []
        for ticket, rest in list(self.open.items()):
            number = rest.pop(0)
            if number == 90:
                raise ValueError("no 90")
            self.made[ticket].append(number * 2)
            if not rest:
                del self.open[ticket]
                through.append((ticket, Answer({"twice": self.made.pop(ticket)})))
        return through


def load_stage(config: StageConfig, context: StageContext) -> Any:
    """By its name."""
    if config.uses == "broken":
        raise ValueError("cannot be set up")
    return Slow() if config.uses == "slow" else double


def live(birth: Birth, settings: Settings, index: RowIndex | None, end: socket.socket) -> None:
    """A child with these stages."""
    child.live(birth, settings, index, end, load_stage)


def make_job(folder: Path, uses: str, rows: int = 100) -> InferPayload:
    """One stage over a file of numbers; the sink is `folder/out`."""
    pq.write_table(pa.table({"n": list(range(rows))}), folder / "numbers.parquet")
    source = RowSourceConfig(files=(str(folder / "numbers.parquet"),))
    RowIndex.build(source).save(folder / "index")
    config = InferConfig(
        source=source,
        stages=(StageConfig(name="s", uses=uses),),
        sink=SinkConfig(path=str(folder / "out")),
    )
    return InferPayload(config.model_dump_json().encode(), str(folder / "index"), "job1")


class Talk:
    """The engine's end of a child, made simple."""

    def __init__(self, kid: Kid) -> None:
        self.kid = kid
        self.line: Line[Replies] = Line(kid.socket, msgspec.msgpack.Decoder(Replies))
        self.held: list[Replies] = []

    def hear(self) -> Replies:
        """The next reply; within a minute."""
        for _ in range(60):
            if self.held:
                return self.held.pop(0)
            self.held += self.line.receive(1.0)
        raise AssertionError("nothing came within a minute")

    def ask(self, order: Orders) -> Replies:
        """An order, and the next reply."""
        self.line.send(order)
        return self.hear()
