"""A job with real children, and an engine and a coordinator in the process of the test."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shoestring.base.clock import SystemClock
from shoestring.control.pools import decide
from shoestring.data.outputs import staging_folder
from shoestring.data.row_index import RowIndex, RowSourceConfig
from shoestring.data.sink_config import SinkConfig
from shoestring.infer.config import InferConfig, LimitsConfig, ShardsConfig, StageConfig
from shoestring.infer.desk import Desk
from shoestring.infer.engine import Engine, Tools
from shoestring.infer.graph import Graph
from shoestring.infer.kids import NurseryKids
from shoestring.infer.layout import Setting
from shoestring.infer.nursery import Nursery
from shoestring.infer.placement import budget_for, look, outfits
from shoestring.infer.shared import Segments
from shoestring.infer.wire import InferPayload
from tests.infer.fake_seat import FakeSeat

STAGES = '''
import os, signal, time
import numpy as np
from shoestring.infer.batch import Answer

class Double:
    def __call__(self, batch):
        return {"y": batch["x"] * 2}

class Slow:
    def __call__(self, batch):
        time.sleep(0.002 * len(batch))
        return {"y": batch["x"] * 2}

class Poison:
    """Does what the row says."""
    def __init__(self, at=(), what=""):
        self.at, self.what = set(at), what
    def __call__(self, batch):
        for x in batch["x"]:
            if int(x) in self.at:
                self.act()
        return {"y": batch["x"] * 2}
    def act(self):
        if self.what == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.what == "hang":
            time.sleep(1000)
        elif self.what == "memory":
            raise MemoryError("too large")
        elif self.what == "raise":
            raise ValueError("not this one")
        elif self.what == "exit":
            os._exit(3)

class Leak:
    """Holds on to everything."""
    held = []
    def __call__(self, batch):
        self.held.append(np.ones(1 << 20))
        return {"y": batch["x"] * 2}

class Bug:
    def __call__(self, batch):
        return {"y": batch["no such column"]}

class BadSetup:
    def setup(self, context):
        raise RuntimeError("no such model")
    def __call__(self, batch):
        return {}

class Detect:
    """0, 1 or 2 parts of each row."""
    def __call__(self, batch):
        counts = [int(x) % 3 for x in batch["x"]]
        return Answer({"part": [k for c in counts for k in range(c)]}, counts=counts)

class Classify:
    def __call__(self, batch):
        return {"label": batch["x"] * 10 + batch["part"]}

class Seldom:
    """A part of each row below a number; each process that is set up leaves a file."""
    def __init__(self, below, marks):
        self.below, self.marks = below, marks
    def setup(self, context):
        open(f"{self.marks}/{os.getpid()}-{context.threads}", "w").close()
    def __call__(self, batch):
        counts = [int(x < self.below) for x in batch["x"]]
        return Answer({"part": [1] * sum(counts)}, counts=counts)

class Nothing:
    def __call__(self, batch):
        return Answer({"part": np.zeros(0)}, counts=[0] * len(batch))
'''


def source(folder: Path, rows: int) -> RowSourceConfig:
    """Rows with their number in `x`, in two files."""
    cut = rows // 3
    for name, start, stop in (("a", 0, cut), ("b", cut, rows)):
        table = pa.table({"x": list(range(start, stop)), "t": [f"row {at}" for at in range(start, stop)]})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=500)
    return RowSourceConfig(files=(str(folder / "*.parquet"),))


def job(folder: Path, rows: int, stages: list[dict[str, Any]], **limits: Any) -> InferConfig:
    """Settings; `uses` of a stage is the name of a class above."""
    (folder / "made.py").write_text(STAGES)
    made = [StageConfig(**{**one, "uses": f"{folder}/made.py:{one['uses']}"}) for one in stages]
    return InferConfig(
        source=source(folder, rows),
        stages=tuple(made),
        sink=SinkConfig(path=str(folder / "out")),
        shards=ShardsConfig(ahead=2),
        limits=LimitsConfig(**{"hang_s": 60.0, **limits}),
    )


class RealJob:
    """See the module."""

    def __init__(
        self, folder: Path, config: InferConfig, shard_rows: int, chunk_rows: int = 200, **seat: Any
    ) -> None:
        self.clock = SystemClock()
        self.folder, self.config = folder, config
        index = RowIndex.build(config.source)
        index.save(folder / "index")
        self.graph = Graph.of(config, index.schema)
        payload = InferPayload(config.model_dump_json().encode(), str(folder / "index"), "token")
        self.segments = Segments.make()
        self.nursery = Nursery.start(payload, self.segments.folder, folder, "w0")
        self.seat = FakeSeat(index.rows, shard_rows, **seat)
        tools = Tools(
            kids=NurseryKids(self.nursery, outfits(self.graph, 2.0)),
            desk=Desk(self.seat, self.clock),
            clock=self.clock,
            remove=self.segments.remove,
            identity=lambda at: index.identities(at, at + 1)[0],
            budget=budget_for(config, self.segments),
            look=lambda budget: look(budget, self.segments),
            decide=decide,
        )
        setting = Setting(
            "w0.1", 2.0, chunk_rows=chunk_rows, batches=dict.fromkeys(self.graph.nodes, 16), rows=index.rows
        )
        self.engine = Engine(config, self.graph, setting, tools)

    def run(self, until: Callable[[], bool] = lambda: False, most_s: float = 100.0) -> bool:
        """Until it has ended (True), or something holds."""
        end_s = self.clock.now() + most_s
        while not until():
            assert self.clock.now() < end_s, f"it does not end: {self.seat.faults}"
            if self.engine.step():
                self.engine.check()
                return True
        return False

    def kill(self, pool: str, number: int = signal.SIGKILL) -> bool:
        """The newest process of a pool that is at work; whether there was one."""
        able = [one for one in self.engine._crew.members(pool) if one.tasks]
        if able:
            os.kill(able[-1].kid.pid, number)
        return bool(able)

    def close(self) -> None:
        """End it."""
        self.engine.close()
        self.segments.close()

    def table(self) -> pa.Table:
        """All counted rows, by `x`."""
        where = self.folder / "out" / staging_folder("token")
        tables = [pq.read_table(where / staged.name) for staged in self.seat.done_leases.values()]
        return pa.concat_tables(tables, promote_options="permissive").sort_by("x")
