"""A stage's side: batches from slices of segments, answers with what stages below need, streams."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.batch import Answer, Batch
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.graph import Graph
from shoestring.infer.predicting import Batches, Predictor, Streamer
from shoestring.infer.schemas import emits_many, item_schema
from shoestring.infer.shared import Segments
from shoestring.infer.talk import Line
from shoestring.infer.telling import Meter
from shoestring.infer.wire import Orders, Predict, Predicted, Raised, Ref, Replies
from tests.infer.kidstages import Slow

SOURCE = pa.schema([("n", pa.int64()), ("text", pa.string()), ("other", pa.int8())])


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    made = Segments(tmp_path)
    for name, numbers in {"one": range(5), "two": range(10, 15)}.items():
        columns = {
            "n": list(numbers),
            "text": [f"t{one}" for one in numbers],
            "other": pa.nulls(5, pa.int8()),
        }
        made.write(name, pa.table(columns))
    return made


def predictor(
    segments: Segments,
    stage: Callable[[Batch], Any],
    *stages: dict[str, Any],
    agreed: pa.Schema | None = None,
) -> Predictor:
    """Of the first of these stages."""
    graph = Graph.of(InferConfig(stages=tuple(StageConfig(**one) for one in stages)), SOURCE)
    batches = Batches(next(iter(graph.nodes.values())), segments, agreed)
    return Predictor(batches, stage, Meter(FakeClock()))


PARTS = (Ref("two", 3, 5), Ref("one", 0, 2), Ref("two", 0, 1))


def test_a_batch_is_the_items_asked_for_in_their_order(segments: Segments) -> None:
    seen: list[dict[str, Any]] = []

    def stage(batch: Batch) -> dict[str, Any]:
        seen.append(batch.table.to_pydict())
        return {"y": batch["n"] * 2}

    done = predictor(segments, stage, {"name": "a", "columns": ("text", "n")}).do(Predict(7, PARTS, "x"))
    assert seen == [{"text": ["t13", "t14", "t0", "t1", "t10"], "n": [13, 14, 0, 1, 10]}]
    assert (done.task, done.rows, done.counts, done.errors) == (7, 5, b"", {})
    assert segments.read("x").to_pydict() == {"y": [26, 28, 0, 2, 20]}, "a leaf's answer is its own columns"
    assert done.size_bytes == (segments.folder / "x").stat().st_size


def test_whole_segments_are_not_copied(segments: Segments) -> None:
    held: list[int] = []

    def stage(batch: Batch) -> dict[str, Any]:
        held.append(batch["n"].__array_interface__["data"][0])
        return {"y": batch["n"]}

    table = segments.read("one")
    own = predictor(segments, stage, {"name": "a"})
    before = pa.total_allocated_bytes()
    read = own._batches.gather(Predict(1, (Ref("one", 1, 5),), "x"))
    assert pa.total_allocated_bytes() == before and read.num_rows == 4 and table.num_rows == 5
    own.do(Predict(1, (Ref("one", 0, 5),), "x"))
    assert held[0] % 8 == 0


def test_what_stages_below_need_goes_along_by_counts(segments: Segments) -> None:
    def detect(batch: Batch) -> Answer:
        return Answer({"box": [1, 2, 3]}, counts=[2, 0, 1, 0, 0], errors={4: "bad"})

    below = {"name": "b", "columns": ("text", "box")}
    done = predictor(segments, detect, {"name": "a"}, below).do(Predict(1, PARTS, "x"))
    answer = segments.read("x")
    assert answer.to_pydict() == {"box": [1, 2, 3], "text": ["t13", "t13", "t0"]}
    assert done.rows == 3 and done.counts == b"".join(one.to_bytes(4, "little") for one in (2, 0, 1, 0, 0))
    assert done.errors == {4: "bad"}
    assert item_schema(answer.schema).names == ["box"] and emits_many(answer.schema)
    predictor(segments, detect, {"name": "a"}, {"name": "b"}).do(Predict(2, PARTS, "y"))
    assert segments.read("y").column_names == ["box", "n", "text", "other"], "one that reads all gets all"


def test_one_each_keeps_failed_items_in_their_places(segments: Segments) -> None:
    def stage(batch: Batch) -> Answer:
        return Answer({"y": batch["n"] + 1}, errors={1: "bad"})

    done = predictor(segments, stage, {"name": "a"}, {"name": "b"}).do(Predict(1, (Ref("one", 1, 4),), "x"))
    assert segments.read("x").select(["y", "n"]).to_pydict() == {"y": [2, None, 4], "n": [1, 2, 3]}
    assert done.rows == 3 and done.errors == {1: "bad"}


def test_where_all_fail_before_anything_is_known(segments: Segments) -> None:
    def stage(batch: Batch) -> Answer:
        return Answer({}, errors=dict.fromkeys(range(len(batch)), "bad"))

    done = predictor(segments, stage, {"name": "a"}).do(Predict(1, PARTS, "x"))
    assert (done.rows, done.size_bytes, len(done.errors)) == (0, 0, 5)
    assert not (segments.folder / "x").exists()
    done = predictor(segments, stage, {"name": "a"}, {"name": "b"}).do(Predict(1, PARTS, "x"))
    assert done.rows == 5 and len(item_schema(segments.read("x").schema)) == 0


def test_names_that_are_wrong_are_told(segments: Segments) -> None:
    with pytest.raises(ConfigError, match="two columns are called 'n'"):
        predictor(segments, lambda batch: {"n": batch["n"]}, {"name": "a"}).do(Predict(1, PARTS, "x"))
    own = Graph.of(InferConfig(stages=(StageConfig(name="a", columns=("txt",)),)), None).nodes["a"]
    with pytest.raises(ConfigError, match="did you mean 'text'"):
        Batches(own, segments, None).gather(Predict(1, PARTS, "x"))
    with pytest.raises(InferError, match="gave 1 values in column 'y' for 5 items"):
        predictor(segments, lambda _: {"y": [1]}, {"name": "a"}).do(Predict(1, PARTS, "x"))


class Ticking(Slow):
    """One that costs a second a turn."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock
        self.closed = False

    def work(self) -> list[tuple[int, Answer]]:
        """As `Slow`."""
        self.clock.advance(1.0)
        return super().work()

    def close(self) -> None:
        """Told when."""
        self.closed = True


def stream(segments: Segments, orders: list[Predict], again: Callable[[], Any]) -> list[Replies]:
    """Everything that it says to these orders."""
    clock = FakeClock()
    graph = Graph.of(InferConfig(stages=(StageConfig(name="a"),)), SOURCE)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        line: Line[Replies] = Line(ours, msgspec.msgpack.Decoder(Replies))
        for order in orders:
            line.send(order)
        ours.shutdown(socket.SHUT_WR)
        first = Ticking(clock)
        streamer = Streamer(Batches(graph.nodes["a"], segments, None), first, again, Meter(clock))
        streamer.serve(Line(theirs, msgspec.msgpack.Decoder(Orders)))
        streamer.close()
        assert first.closed and streamer.room == -1
        theirs.close()
        said: list[Replies] = []
        while True:
            try:
                said += line.receive(1.0)
            except Exception:
                return said


def test_many_batches_at_a_time(segments: Segments) -> None:
    orders = [Predict(1, (Ref("one", 0, 4),), "x"), Predict(2, (Ref("two", 0, 2),), "y")]
    said = stream(segments, orders, Slow)
    assert [(one.task, type(one)) for one in said] == [(2, Predicted), (1, Predicted)], "the short one first"
    assert segments.read("x").column("twice").to_pylist() == [0, 2, 4, 6]
    assert segments.read("y").column("twice").to_pylist() == [20, 22]
    costs = [one.cost.took_s for one in said if isinstance(one, Predicted)]
    assert costs == [2.0, 2.0], "four seconds of work in all: no second counts twice"
    assert [one.room for one in said if isinstance(one, Predicted)] == [6, 8]


def test_a_stream_that_raises_is_made_anew(segments: Segments) -> None:
    segments.write("bad", pa.table({"n": [90], "text": ["x"], "other": pa.nulls(1, pa.int8())}))
    orders = [
        Predict(1, (Ref("one", 0, 2),), "x"),
        Predict(2, (Ref("bad", 0, 1),), "y"),
        Predict(3, (Ref("gone", 0, 1),), "z"),
    ]
    said = stream(segments, orders, Slow)
    assert [(one.task, type(one)) for one in said] == [(3, Raised), (1, Raised), (2, Raised)]
    kinds = {(one.kind, one.signature.split(" ")[0]) for one in said[1:] if isinstance(one, Raised)}
    assert kinds == {("stage", "ValueError")}

    def broken() -> Any:
        raise MemoryError("no room for it any more")

    said = stream(segments, orders[:2], broken)
    assert [one.task for one in said] == [1, 2, -1]
    assert isinstance(said[-1], Raised) and said[-1].kind == "memory"
