"""Child processes, a coordinator and shared memory that live in one process, on a clock of their own.

Rows are numbers; a stage makes of each item some items, an error, or a disaster. What a writer puts together
is held against what it should be, row by row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from msgspec.structs import replace

from shoestring.base.clock import FakeClock
from shoestring.control.pools import PoolsConfig, PoolState, Resize
from shoestring.data.output_state import Staged
from shoestring.data.row_index import RowSourceConfig
from shoestring.infer.config import InferConfig, LimitsConfig, ShardsConfig, StageConfig
from shoestring.infer.crew import OUT_OF_MEMORY
from shoestring.infer.desk import Desk
from shoestring.infer.engine import Engine, Tools
from shoestring.infer.graph import Graph
from shoestring.infer.kids import KidEnd
from shoestring.infer.layout import Setting
from shoestring.infer.pressure import Budget
from shoestring.infer.shared import NO_ROOM
from shoestring.infer.wire import (
    Cost,
    Discard,
    Load,
    Loaded,
    Orders,
    Predict,
    Predicted,
    Raised,
    Replies,
    Up,
    Write,
    Wrote,
)
from tests.infer.fake_seat import FakeSeat

MB = 1 << 20
Item = tuple[int, ...]
"""Where an item comes from: the row's position, then its number among what each stage made."""


class Disaster(Exception):
    """An item does something to its process: `kill`, `exit`, `hang`, `memory`, or `raise`."""


@dataclass
class StageAct:
    """What a stage does.

    Attributes:
        many: items that come out of an item; None: one, without counts.
        error: item -> its error, empty where it has none.
        act: item -> a disaster, empty where there is none.
        item_s: for each item; `setup_s`: before the first; `batch_s`: for each batch.
        item_held_bytes: of its process's memory, for each item of its last batch.
        most_items: a larger batch kills its process.
        setup: a disaster of its setup.
        room: for a stage that takes many batches at a time.
    """

    many: Callable[[Item], int] | None = None
    error: Callable[[Item], str] = lambda item: ""
    act: Callable[[Item], str] = lambda item: ""
    item_s: float = 0.001
    batch_s: float = 0.0
    item_held_bytes: int = 0
    most_items: int = 1 << 60
    setup_s: float = 0.1
    setup: str = ""
    room: int = -1


@dataclass
class World:
    """All there is beside the engine.

    Attributes:
        segments: name -> items in it.
        written: lease -> row -> what came out; only what was staged last.
        tries: (pool, items) of each task that was begun.
        most_items: that all segments together have room for.
    """

    clock: FakeClock
    parents: dict[str, str]
    acts: dict[str, StageAct]
    bad_rows: dict[int, str] = field(default_factory=dict)
    segments: dict[str, list[Item]] = field(default_factory=dict)
    written: dict[int, dict[int, Any]] = field(default_factory=dict)
    discarded: list[Staged] = field(default_factory=list)
    tries: list[tuple[str, tuple[Item, ...]]] = field(default_factory=list)
    most_bytes: int = 0
    item_bytes: int = 100
    write_disasters: deque[str] = field(default_factory=deque)
    discard_act: str = ""
    load_act: Callable[[int], str] = lambda position: ""
    load_s: float = 0.0001
    most_items: int = 1 << 60

    def put(self, name: str, items: list[Item]) -> int:
        assert name not in self.segments
        self.segments[name] = items
        self.most_bytes = max(self.most_bytes, self.item_bytes * sum(map(len, self.segments.values())))
        return self.item_bytes * len(items)

    def look(self, budget: Budget) -> None:
        """Shared memory that is free."""
        held_bytes = self.item_bytes * sum(map(len, self.segments.values()))
        budget.free_bytes = budget.total_bytes - held_bytes

    def expected(self, position: int, given_up: Iterable[int] = ()) -> Any:
        """What should come of a row: an error, or for each root stage what came out."""
        if position in given_up:
            return "given up"
        if text := disaster_text(self.load_act(position)):
            return text
        if position in self.bad_rows:
            return self.bad_rows[position]
        return {name: self._through(name, (position,)) for name, up in self.parents.items() if up == "rows"}

    def _through(self, stage: str, item: Item) -> Any:
        act = self.acts[stage]
        if text := act.error(item) or disaster_text(act.act(item)):
            return text
        children = [name for name, parent in self.parents.items() if parent == stage]
        count = 1 if act.many is None else act.many(item)
        return [
            {"item": (*item, at), **{child: self._through(child, (*item, at)) for child in children}}
            for at in range(count)
        ]

    def is_full(self, order: Load | Predict) -> bool:
        """Whether an answer has no room."""
        parts = order.ranges if isinstance(order, Load) else [(one.start, one.stop) for one in order.parts]
        items = sum(stop - start for start, stop in parts)
        return sum(map(len, self.segments.values())) + items > self.most_items

    # --- what children do -----------------------------------------------------------------------------

    def load(self, order: Load) -> Loaded:
        positions = [at for start, stop in order.ranges for at in range(start, stop)]
        errors = {place: self.bad_rows[at] for place, at in enumerate(positions) if at in self.bad_rows}
        size = self.put(order.segment, [(at,) for at in positions])
        return Loaded(order.task, len(positions), size, errors, Cost(0.001, 0.001, MB))

    def predict(self, stage: str, order: Predict, took_s: float) -> Predicted:
        act = self.acts[stage]
        items = [one for part in order.parts for one in self.segments[part.segment][part.start : part.stop]]
        errors = {place: text for place, item in enumerate(items) if (text := act.error(item))}
        if act.many is None:
            out = [(*item, 0) for item in items]
            counts = b""
        else:
            each = [0 if place in errors else act.many(item) for place, item in enumerate(items)]
            out = [(*item, at) for item, count in zip(items, each, strict=True) for at in range(count)]
            counts = np.array(each, dtype="<i4").tobytes()
        size = self.put(order.segment, out)
        return Predicted(order.task, len(out), size, counts, errors, Cost(took_s, took_s, MB), act.room)

    def write(self, order: Write) -> Wrote:
        rows = assemble(self, order)
        assert len(rows) == sum(stop - start for start, stop in order.ranges)
        self.written[order.lease_id] = rows
        failed = sum(isinstance(one, str) for one in rows.values())
        return Wrote(
            order.task, Staged(f"{order.who}-{order.lease_id}", len(rows), failed), Cost(0.01, 0.01, MB)
        )


def assemble(world: World, order: Write) -> dict[int, Any]:
    """What a writer makes of a shard, and whether the pieces are in the order they should be."""
    made: dict[str, dict[tuple[str, int], Any]] = {}
    for stage, pieces in order.pieces.items():
        outcome: dict[tuple[str, int], Any] = {}
        seen: list[Item] = []
        for piece in pieces:
            count, at = piece.stop - piece.start, piece.at
            each = np.frombuffer(piece.counts, "<i4").tolist() if piece.counts else [1] * count
            seen += world.segments[piece.source][piece.start : piece.stop]
            for place in range(count):
                key = (piece.source, piece.start + place)
                assert key not in outcome
                outcome[key] = piece.errors.get(place) or [(piece.answer, at + n) for n in range(each[place])]
                at += each[place] if piece.answer else 0
        assert seen == sorted(seen), f"the pieces of {stage} are out of order"
        made[stage] = outcome

    def through(stage: str, key: tuple[str, int]) -> Any:
        found = made[stage][key]
        if isinstance(found, str):
            return found
        children = [name for name, parent in world.parents.items() if parent == stage]
        return [
            {"item": world.segments[one[0]][one[1]], **{child: through(child, one) for child in children}}
            for one in found
        ]

    rows: dict[int, Any] = dict(order.verdicts)
    for chunk in order.chunks:
        positions = [at for start, stop in chunk.ranges for at in range(start, stop)]
        assert [(at,) for at in positions] == world.segments[chunk.segment]
        for place, at in enumerate(positions):
            roots = [name for name, parent in world.parents.items() if parent == "rows"]
            assert at not in rows
            rows[at] = chunk.errors.get(place) or {one: through(one, (chunk.segment, place)) for one in roots}
    wanted = [at for start, stop in order.ranges for at in range(start, stop)]
    loaded = [at for chunk in order.chunks for start, stop in chunk.ranges for at in range(start, stop)]
    assert loaded == [at for at in wanted if at not in order.verdicts]
    return {at: rows[at] for at in wanted}


def disaster_text(kind: str) -> str:
    """What stands in the error column of an item that does that."""
    return {
        "": "",
        "kill": f"killed its process (SIGKILL; {OUT_OF_MEMORY})",
        "segv": "killed its process (SIGSEGV)",
        "exit": "ended its process (exit code 3)",
        "hang": "took longer than 30 s",
        "memory": "does not fit into memory",
        "raise": "ValueError: no",
    }[kind]


class FakeKid:
    """A child: does one thing after the other, each takes its time."""

    def __init__(self, pid: int, pool: str, device: str, world: World) -> None:
        self.pid, self.pool, self.device = pid, pool, device
        self.memory_bytes = MB
        self._world = world
        self._orders: deque[Orders] = deque()
        self._replies: deque[Replies] = deque()
        self._ended: KidEnd | None = None
        self._told_end = False
        act = world.acts.get(pool, StageAct())
        self._at_s = world.clock.now() + act.setup_s
        self._up = False
        self._hangs = False

    def send(self, order: Orders) -> None:
        if not self._orders and self._up:
            self._at_s = self._world.clock.now() + self._takes_s(order)
        self._orders.append(order)

    def receive(self) -> tuple[list[Replies], KidEnd | None]:
        replies = list(self._replies)
        self._replies.clear()
        return replies, self._ended

    def stop(self) -> None:
        self._ended = self._ended or KidEnd(0, "")

    def kill(self) -> None:
        self._ended = self._ended or KidEnd(-9, "killed")

    def next_s(self) -> float:
        """When it will have something to say."""
        if self._replies or self._ended is not None:
            return self._world.clock.now()
        if self._hangs or (self._up and not self._orders):
            return float("inf")
        return self._at_s

    def go(self) -> None:
        """Do what is due."""
        if self._ended is not None or self._hangs or self._world.clock.now() < self._at_s:
            return
        if not self._up:
            self._come_up()
        elif self._orders:
            order = self._orders.popleft()
            self._do(order)
        if self._orders and self._ended is None:
            self._at_s = self._world.clock.now() + self._takes_s(self._orders[0])

    def _come_up(self) -> None:
        act = self._world.acts.get(self.pool, StageAct())
        if act.setup == "raise":
            self._replies.append(Raised(-1, "stage", "KeyError at x", "KeyError: 'x'", "Traceback ...", ""))
            self._ended = KidEnd(0, "")
        elif act.setup == "hang":
            self._hangs = True
        elif act.setup:
            self._ended = KidEnd(-11, "segmentation fault")
        else:
            self._up = True
            self._replies.append(Up(-1, act.setup_s, act.room >= 0, act.room))

    def _takes_s(self, order: Orders) -> float:
        if isinstance(order, Predict):
            self._world.tries.append((self.pool, tuple(self._items(order))))
            return self._took_s(order)
        if isinstance(order, Load):
            return self._world.load_s * sum(stop - start for start, stop in order.ranges)
        return 0.01

    def _took_s(self, order: Predict) -> float:
        act = self._world.acts[self.pool]
        return act.batch_s + act.item_s * sum(part.stop - part.start for part in order.parts)

    def _items(self, order: Predict) -> list[Item]:
        return [i for part in order.parts for i in self._world.segments[part.segment][part.start : part.stop]]

    def _do(self, order: Orders) -> None:
        world = self._world
        disaster = self._disaster(order)
        if disaster in ("kill", "exit", "segv"):
            self._ended = KidEnd({"kill": -9, "exit": 3, "segv": -11}[disaster], "its last words")
        elif disaster == "hang":
            self._hangs = True
        elif disaster:
            kind = {"raise": "stage", "memory": "memory", "sink": "sink"}[disaster]
            said = "no space left" if kind == "sink" else "ValueError: no"
            self._replies.append(
                Raised(order.task, kind, "ValueError at f.py:3", said, "Traceback ...", "mend it")
            )
        elif not isinstance(order, Write | Discard) and world.is_full(order):
            self._replies.append(Raised(order.task, "memory", "MemoryError", NO_ROOM, "Traceback ..."))
        elif isinstance(order, Load):
            self._replies.append(world.load(order))
        elif isinstance(order, Predict):
            reply = world.predict(self.pool, order, self._took_s(order))
            if held_bytes := world.acts[self.pool].item_held_bytes:
                self.memory_bytes = MB + held_bytes * len(self._items(order))
            cost = replace(reply.cost, memory_bytes=self.memory_bytes)
            self._replies.append(replace(reply, cost=cost))
        elif isinstance(order, Write):
            self._replies.append(world.write(order))
        elif isinstance(order, Discard):
            world.discarded.append(order.staged)
            self._replies.append(Wrote(order.task, None, Cost(0.01, 0.01, MB)))

    def _disaster(self, order: Orders) -> str:
        if isinstance(order, Predict):
            act, items = self._world.acts[self.pool], self._items(order)
            acts = ("kill",) if len(items) > act.most_items else tuple(act.act(item) for item in items)
        elif isinstance(order, Load):
            places = (at for start, stop in order.ranges for at in range(start, stop))
            acts = tuple(self._world.load_act(at) for at in places)
        elif isinstance(order, Discard):
            return self._world.discard_act
        elif isinstance(order, Write) and self._world.write_disasters:
            return self._world.write_disasters.popleft()
        else:
            return ""
        return next((act for act in acts if act), "")


class FakeKids:
    """Makes them, and moves the clock to where something happens next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: list[FakeKid] = []
        self.closed = False

    def start(self, pool: str, device: str) -> FakeKid:
        kid = FakeKid(100 + len(self.made), pool, device, self.world)
        self.made.append(kid)
        return kid

    def wait(self, kids: list[Any], timeout_s: float) -> list[Any]:
        now = self.world.clock.now()
        first = min((kid.next_s() for kid in kids), default=float("inf"))
        self.world.clock.advance(max(0.0, min(first, now + timeout_s) - now))
        for kid in kids:
            kid.go()
        return [
            kid for kid in kids if kid.next_s() <= self.world.clock.now() and (kid._replies or kid._ended)
        ]

    def memory_bytes(self, pid: int) -> int:
        return self.made[pid - 100].memory_bytes

    def close(self) -> None:
        self.closed = True


def nothing(state: PoolState, options: PoolsConfig) -> tuple[tuple[Resize, ...], str]:
    """A policy that changes nothing."""
    return (), "as it is"


@dataclass
class Scene:
    """An engine among fakes."""

    world: World
    kids: FakeKids
    seat: FakeSeat
    engine: Engine

    def run(self, until: Callable[[], bool] = lambda: False, most_s: float = 100_000.0) -> bool:
        """Until it has finished (True), or something holds."""
        while not until():
            assert self.world.clock.now() < most_s, "it does not end"
            if self.engine.step():
                self.engine.close()
                self.engine.check()
                return True
        return False

    def rows(self) -> dict[int, Any]:
        """Of all that was counted: each row once."""
        found: dict[int, Any] = {}
        for lease in self.seat.done_leases:
            assert not found.keys() & self.world.written[lease].keys()
            found |= self.world.written[lease]
        return found


def scene(
    stages: dict[str, tuple[str, StageAct]],
    rows: int,
    shard_rows: int = 50,
    batch: int = 8,
    chunk_rows: int = 20,
    processes: int = 1,
    budget_bytes: int = 100 * MB,
    bad_rows: dict[int, str] | None = None,
    given_up: dict[int, str] | None = None,
    limits: dict[str, Any] | None = None,
    decide: Callable[..., Any] = nothing,
    stage_config: dict[str, Any] | None = None,
    proven: tuple[str, ...] = (),
    devices: tuple[str, ...] = (),
) -> Scene:
    """Put one up; `stages`: name -> (parent, what it does)."""
    clock = FakeClock(1000.0)
    parents = {name: parent for name, (parent, _) in stages.items()}
    world = World(clock, parents, {name: act for name, (_, act) in stages.items()}, bad_rows or {})
    config = InferConfig(
        source=RowSourceConfig(files=("x",)),
        stages=tuple(
            StageConfig(
                name=name,
                uses="m:C",
                after=parent,
                batch=batch,
                processes=processes,
                **{"keep": True, **(stage_config or {})},
            )
            for name, parent in parents.items()
        ),
        shards=ShardsConfig(ahead=3),
        limits=LimitsConfig(hang_s=30.0, **(limits or {})),
    )
    kids, seat = FakeKids(world), FakeSeat(rows, shard_rows, given_up)
    engine = Engine(
        config,
        Graph.of(config, None),
        Setting("w0.1", 2.0, devices, chunk_rows=chunk_rows, rows=rows, proven=frozenset(proven)),
        Tools(
            kids,
            Desk(seat, clock),
            clock,
            lambda name: world.segments.pop(name, None) and None,
            lambda at: f"rows.txt#{at}",
            Budget(budget_bytes, 1000 * MB, 1000 * MB),
            lambda budget: None,
            decide,
        ),
    )
    return Scene(world, kids, seat, engine)
