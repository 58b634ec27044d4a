"""A trial before the job: a few rows through all stages, and what each part costs (source: ours).

The engine, its children and the files are those of the job; only the coordinator is played. First rows from
all over the source go through, for errors and types, then as many as a second or so allows in one run, for
time. One part works at a time, so that none is measured while others take its cores.
"""

from __future__ import annotations

import tempfile
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from shoestring.base.clock import Clock
from shoestring.base.errors import InferError
from shoestring.control.pools import PoolsConfig
from shoestring.data.output_state import Ranges, Staged
from shoestring.data.ranges import size
from shoestring.data.row_index import RowIndex
from shoestring.fleet import messages as m
from shoestring.fleet.job_status import PoolShown
from shoestring.fleet.shard_messages import PoolChange
from shoestring.infer.config import ROWS, InferConfig
from shoestring.infer.crew import Member
from shoestring.infer.desk import Desk
from shoestring.infer.engine import FIRST_BATCH, MOST_ITEMS, Engine, Tools
from shoestring.infer.graph import Graph
from shoestring.infer.kids import NurseryKids
from shoestring.infer.layout import Setting
from shoestring.infer.nursery import Nursery
from shoestring.infer.placement import budget_for, devices_of, look, outfits
from shoestring.infer.rehearsal import Rehearsal, StageCost
from shoestring.infer.schemas import agreed
from shoestring.infer.shared import Segments
from shoestring.infer.wire import (
    Cost,
    InferPayload,
    Load,
    Loaded,
    Orders,
    Predict,
    Predicted,
    Replies,
    Write,
    Wrote,
)

RUNS = 20
"""Places of the source that the first rows are from."""
TIMED_S, MOST_TIMED_ROWS = 1.0, 1 << 16
BATCH_S = 0.1
"""What a batch should take to begin with, so that what it costs to hand it over does not count."""
CHUNK_BYTES, CHUNK_S, CHUNK_ROWS = 8 << 20, 0.5, 1 << 16
LEAST_CHUNK = 16
LEAST_PART = 0.05
"""Of what a file costs is by its rows, however the two files of the trial compare."""


def rehearse(config: InferConfig, index: RowIndex, rows: int, clock: Clock, cores: float = 1.0) -> Rehearsal:
    """Run `rows` rows, evenly spread over the source, through all stages; this process loads no model.

    Args:
        cores: of each worker of the job: a stage computes with as many threads as it will there.

    Raises:
        InferError: a stage cannot be set up, fails with all rows alike (a bug; with its traceback), or had
            nothing to do, so that nobody knows what it makes.
        ConfigError: a stage wants a GPU, and there is none; stages do not fit each other.
        FleetError: processes could not be started.
    """
    began_s = clock.now()
    with tempfile.TemporaryDirectory(prefix="shoestring-trial-") as name:
        folder = Path(name)
        index.save(folder / "index")
        short = _short(config, folder)
        graph = Graph.of(short, index.schema)
        kids = outfits(Graph.of(config, index.schema), cores)
        payload = InferPayload(short.model_dump_json().encode(), str(folder / "index"), "trial")
        segments = Segments.make()
        try:
            # Forked where that is safe: it takes milliseconds.
            nursery = Nursery.start(
                payload, segments.folder, folder, "trial", spawn=threading.active_count() > 1
            )
            try:
                notes = Notes(segments)
                made = NurseryKids(nursery, kids)
                _play(short, graph, index, min(rows, index.rows), clock, segments, made, notes)
            finally:
                nursery.close()
        finally:
            segments.close()
    return summed_up(notes, graph, clock.now() - began_s)


def _short(config: InferConfig, folder: Path) -> InferConfig:
    """The job with one process for each part, and its output aside."""
    return config.model_copy(
        update={
            "stages": tuple(one.model_copy(update={"processes": 1}) for one in config.stages),
            "sink": config.sink.model_copy(update={"path": str(folder / "out")}),
            "pools": PoolsConfig(load=1, write=1),
            "shards": config.shards.model_copy(update={"ahead": 1}),
        }
    )


def _play(
    config: InferConfig,
    graph: Graph,
    index: RowIndex,
    rows: int,
    clock: Clock,
    segments: Segments,
    kids: NurseryKids,
    notes: Notes,
) -> None:
    seat = TrialSeat(spread(index.rows, rows), notes, index.rows)
    tools = Tools(
        kids=kids,
        desk=Desk(seat, clock),
        clock=clock,
        remove=segments.remove,
        identity=lambda at: index.identities(at, at + 1)[0],
        budget=budget_for(config, segments),
        look=lambda budget: look(budget, segments),
        decide=lambda state, options: ((), "a trial"),
        saw=notes.saw,
    )
    setting = Setting(
        "trial", 1.0, devices_of(config, 0, 1), MOST_TIMED_ROWS, rows=rows, one_by_one=True,
        batches=dict.fromkeys(graph.nodes, min(FIRST_BATCH, rows)),
    )  # fmt: skip
    engine = Engine(config, graph, setting, tools)
    seat.engine = engine
    try:
        engine.work()
    except InferError as error:
        if notes.loaded and not error.what.startswith(
            "stage "
        ):  # else it says itself what is wrong with the stage
            notes.check_known(graph, rows)
        raise
    finally:
        engine.close()
    notes.check_known(graph, rows)


def spread(rows: int, wanted: int, runs: int = RUNS) -> Ranges:
    """`wanted` of `rows` positions in runs from all over, the first and the last row among them.

    Example: 100, 10, 2 gives (0, 5), (95, 100).
    """
    if wanted >= rows:
        return ((0, rows),)
    runs = max(1, min(runs, wanted))
    ranges: list[tuple[int, int]] = []
    for place in range(runs):
        size = wanted // runs + (place < wanted % runs)
        start = round(place * (rows - size) / max(1, runs - 1))
        start = max(start, ranges[-1][1] if ranges else 0)
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], start + size)
        else:
            ranges.append((start, start + size))
    return tuple(ranges)


@dataclass
class Part:
    """What was seen of a pool in one pass: (items, cost) of each answer; of a loader: rows decoded."""

    answers: list[tuple[int, Cost]] = field(default_factory=list)

    @property
    def items(self) -> int:
        """In all."""
        return sum(items for items, _ in self.answers)

    def rate(self, warms: bool = True) -> tuple[float, float]:
        """(seconds for an item, of those on a core, as a share).

        Args:
            warms: the first answer of several warms up: it does not count.
        """
        seen = self.answers[1:] if warms and len(self.answers) > 1 else self.answers
        items, took_s = sum(items for items, _ in seen), sum(cost.took_s for _, cost in seen)
        if not items or took_s <= 0:
            return 0.0, 1.0
        return took_s / items, sum(cost.cpu_s for _, cost in seen) / took_s


class Notes:
    """All that was seen.

    Attributes:
        passes: of each, what each pool did; `rows` of each.
        setup_s, streams, memory_bytes, gpu: of stages.
        made_bytes: of segments in the first pass.
        staged: the file of each pass.
        schemas: stage -> of its answers' segments.
        errors: of the first pass, by text; `texts`: the first of each stage.
    """

    def __init__(self, segments: Segments) -> None:
        self._segments = segments
        self.passes: list[defaultdict[str, Part]] = []
        self.rows: list[int] = []
        self.staged: list[Staged] = []
        self.setup_s: dict[str, float] = {}
        self.streams: dict[str, bool] = {}
        self.gpu: dict[str, bool | None] = {}
        self.memory_bytes: Counter[str] = Counter()
        self.schemas: dict[str, list[pa.Schema]] = {}
        self.came: Counter[str] = Counter()
        self.made_bytes = 0
        self.loaded_bytes = self.loaded_rows = 0
        self.texts: dict[str, str] = {}
        self.errors: Counter[str] = Counter()

    @property
    def loaded(self) -> bool:
        """Whether any row was read."""
        return bool(self.loaded_bytes)

    def begin(self, rows: int) -> None:
        """Another pass."""
        self.passes.append(defaultdict(Part))
        self.rows.append(rows)

    def saw(self, member: Member[object], order: Orders, reply: Replies) -> None:
        """An answer."""
        first = len(self.passes) == 1
        part = self.passes[-1][member.pool]
        if isinstance(reply, Loaded) and isinstance(order, Load):
            part.answers.append((reply.rows + reply.beyond_rows, reply.cost))
            self.loaded_bytes, self.loaded_rows = reply.size_bytes, reply.rows
            self.made_bytes += reply.size_bytes if first else 0
        elif isinstance(reply, Wrote):
            part.answers.append((self.rows[-1], reply.cost))
            if reply.staged is not None:
                self.staged.append(reply.staged)
            if first and isinstance(order, Write):
                self.errors = texts(order)
        elif isinstance(reply, Predicted) and isinstance(order, Predict):
            items = sum(one.stop - one.start for one in order.parts)
            part.answers.append((items, reply.cost))
            self._stage(member, order, reply, items)
            self.made_bytes += reply.size_bytes if first else 0

    def _stage(self, member: Member[object], order: Predict, reply: Predicted, items: int) -> None:
        name = member.pool
        self.setup_s[name], self.streams[name] = member.setup_s, member.streams
        seen = self.gpu[name] if name in self.gpu else None
        self.gpu[name] = seen if reply.cost.gpu is None else bool(seen) or reply.cost.gpu
        self.memory_bytes[name] = max(self.memory_bytes[name], reply.cost.memory_bytes)
        self.came[name] += items
        if reply.errors and name not in self.texts:
            self.texts[name] = next(iter(reply.errors.values()))
        if len(reply.errors) < items and reply.size_bytes:
            self.schemas.setdefault(name, []).append(self._segments.read(order.segment).schema)

    def check_known(self, graph: Graph, rows: int) -> None:
        """Whether every stage has shown what it makes.

        Raises:
            InferError: one has not.
        """
        for name, node in graph.nodes.items():
            if name in self.schemas:
                continue
            if name in self.texts:
                raise InferError(
                    f"stage {name} has an error for each of the trial's {self.came[name]} items, the first: "
                    f"{self.texts[name]}",
                    "mend it, or try more rows: --set trial.rows=1000",
                )
            if node.parent == ROWS or node.parent in self.schemas:
                raise InferError(
                    f"in the trial's {rows} rows there was nothing that stage {name} could answer: what it "
                    f"makes is not known",
                    "try more rows: --set trial.rows=1000",
                )


class TrialSeat:
    """Plays the coordinator: the spread rows, then a run of rows that takes about a second."""

    def __init__(self, ranges: Ranges, notes: Notes, rows: int) -> None:
        self.engine: Engine | None = None
        self._ranges = ranges
        self._notes = notes
        self._rows = rows
        self._out = False

    def lease(self) -> m.Shard | m.Stop | None:
        """The next pass."""
        if self._out:
            return None
        ranges = self._ranges if not self._notes.passes else self._timed()
        if not ranges:
            return m.Stop("the trial is over")
        self._out = True
        self._notes.begin(size(ranges))
        return m.Shard(len(self._notes.passes), ranges)

    def _timed(self) -> Ranges:
        """Rows for the pass that is timed; none where the first one took long enough."""
        if len(self._notes.passes) > 1 or self.engine is None:
            return ()
        seen, first = self._notes.passes[0], self._notes.rows[0]
        rates = {name: seen[name].rate()[0] for name in self._notes.schemas}
        row_s = seen["load"].rate(warms=False)[0]
        row_s += sum(rate * seen[name].items / first for name, rate in rates.items())
        rows = min(self._rows, MOST_TIMED_ROWS, int(TIMED_S / row_s) if row_s > 0 else MOST_TIMED_ROWS)
        if rows <= first:
            return ()
        batches = {name: first_batch(rates[name], min(FIRST_BATCH, first)) for name in self._notes.schemas}
        self.engine.begin_with(batches)
        start = (self._rows - rows) // 2
        return ((start, start + rows),)

    def done(self, lease_id: int, staged: Staged) -> str:
        """A pass is over."""
        self._out = False
        return "counted"

    def give_back(self, lease_id: int, reason: str) -> None:
        """Never: nobody tells it to leave."""
        self._out = False

    def broken(self, what: str, todo: str) -> None:
        """The engine raises it as well."""

    def tell(
        self,
        pools: tuple[PoolShown, ...] = (),
        changes: tuple[PoolChange, ...] = (),
        faults: tuple[str, ...] = (),
        begun: int = 0,
        notice: str = "",
    ) -> m.ShardOrders:
        """Go on."""
        return m.ShardOrders()


def texts(order: Write) -> Counter[str]:
    """Errors of a shard's rows, and of the items that were made of them, by text."""
    found = Counter(order.verdicts.values())
    for chunk in order.chunks:
        found.update(chunk.errors.values())
    for stage, pieces in order.pieces.items():
        found.update(f"{stage}: {text}" for piece in pieces for text in piece.errors.values())
    return found


def first_batch(item_s: float, tried: int) -> int:
    """Items of the first batches: so many that a batch takes `BATCH_S`, and not fewer than were tried.

    Args:
        item_s: seconds for an item, in batches of `tried`.
    """
    wanted = BATCH_S / item_s if item_s > 0 else MOST_ITEMS
    size = tried
    while 2 * size <= min(wanted, MOST_ITEMS):
        size *= 2
    return size


def chunk_rows(row_bytes: float, load_s: float, slowest_s: float) -> int:
    """Rows that a loader should read at a time.

    Args:
        row_bytes: of a loaded row; load_s: seconds to read one.
        slowest_s: of the slowest stage, for a row: rows are not read minutes ahead.
    """
    bounds = [
        CHUNK_ROWS,
        CHUNK_BYTES / row_bytes if row_bytes > 0 else CHUNK_ROWS,
        CHUNK_S / load_s if load_s > 0 else CHUNK_ROWS,
        max(LEAST_CHUNK, 2.0 / slowest_s) if slowest_s > 0 else CHUNK_ROWS,
    ]
    return max(1, int(min(bounds)))


def less_fixed(few: int, few_s: float, many: int, many_s: float) -> float:
    """Seconds for a row, without what a file costs whatever is in it: shards are larger than the trial's.

    Args:
        few, many: rows of two files; few_s, many_s: what they took.
    """
    whole_s = many_s / many
    return min(whole_s, max(LEAST_PART * whole_s, (many_s - few_s) / (many - few)))


def summed_up(notes: Notes, graph: Graph, took_s: float) -> Rehearsal:
    """Numbers of all that was seen.

    Raises:
        ConfigError: a stage's answers differ in type.
    """
    first, last = notes.passes[0], notes.passes[-1]
    rows = notes.rows[0]
    stages = {}
    for name in graph.nodes:
        # A run of neighbours may hold nothing for a stage that rows from all over had something for.
        item_s, share = (last[name] if last[name].items else first[name]).rate()
        batch = min(FIRST_BATCH, rows)
        if first[name].items:
            batch = first_batch(first[name].rate()[0], batch)
        if last is not first:
            batch = first_batch(item_s, batch)
        # Where rows from all over had nothing for it, those of the run say how much there is.
        seen, among = (first, rows) if first[name].items else (last, notes.rows[-1])
        per_row = seen[name].items / among
        stages[name] = StageCost(
            name=name,
            setup_s=notes.setup_s[name],
            item_s=item_s,
            row_s=item_s * per_row,
            items_per_row=per_row,
            cpu_share=share,
            schema=agreed(notes.schemas[name]).serialize().to_pybytes(),
            batch=graph.nodes[name].config.batch or batch,
            memory_bytes=notes.memory_bytes[name],
            streams=notes.streams[name],
            gpu=notes.gpu[name],
        )
    # What the second pass asks for may have been decoded in the first.
    load = Part([answer for one in notes.passes for answer in one["load"].answers])
    load_s, load_share = load.rate(warms=False)
    write_s, write_share = last["write"].rate()
    if last is not first:
        write_s = less_fixed(rows, first["write"].rate()[0] * rows, notes.rows[-1], write_s * notes.rows[-1])
    staged = notes.staged[-1]
    return Rehearsal(
        rows=rows,
        stages=stages,
        load_s=load_s,
        load_cpu_share=load_share,
        write_s=write_s,
        write_cpu_share=write_share,
        row_bytes=notes.made_bytes / rows,
        output_row_bytes=staged.size_bytes / max(1, staged.rows),
        chunk_rows=chunk_rows(
            notes.loaded_bytes / max(1, notes.loaded_rows), load_s, max(one.row_s for one in stages.values())
        ),
        errors=dict(notes.errors),
        took_s=took_s,
    )
