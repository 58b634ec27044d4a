"""Shards put together: against a row-by-row account of the same work, cut into batches at random."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from shoestring.base.errors import ConfigError, InferError
from shoestring.data.row_index import RowIndex, RowSourceConfig
from shoestring.infer.assemble import Shard, identities
from shoestring.infer.config import ROWS, InferConfig, StageConfig
from shoestring.infer.graph import Graph
from shoestring.infer.schemas import marked, output_schema
from shoestring.infer.wire import Chunk, Piece, Write

ROWS_THERE = 40


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> RowIndex:
    folder = tmp_path_factory.mktemp("rows")
    for number, (start, stop) in enumerate([(0, 7), (7, 8), (8, ROWS_THERE)]):
        table = pa.table({"n": list(range(start, stop)), "row": [f"r{one}" for one in range(start, stop)]})
        pq.write_table(table, folder / f"{number}.parquet")
    return RowIndex.build(RowSourceConfig(files=(str(folder),)))


class World:
    """Stages that make numbers of numbers, worked off in batches over several shards.

    `truth` is the account: what each item of each stage became, by the path of items to it.
    """

    def __init__(self, data: st.DataObject, index: RowIndex) -> None:
        self.data, self.index = data, index
        self.graph, self.many = self._graph()
        self.schemas = {
            name: marked(pa.schema([(f"v_{name}", pa.int64())]), pa.schema([]), self.many[name])
            for name in self.graph.nodes
        }
        self.segments: dict[str, pa.Table] = {}
        self.pieces: dict[int, dict[str, list[Piece]]] = {}
        self.truth: dict[str, dict[tuple[int, ...], Any]] = {name: {} for name in self.graph.nodes}
        self.read_errors: dict[int, str] = {}
        self.verdicts: dict[int, str] = {}

    def _graph(self) -> tuple[Graph, dict[str, bool]]:
        count = self.data.draw(st.integers(1, 4), "stages")
        stages = []
        for at in range(count):
            after = self.data.draw(st.sampled_from([ROWS, *(f"s{one}" for one in range(at))]))
            stages.append(StageConfig(name=f"s{at}", after=after, keep=self.data.draw(st.booleans())))
        graph = Graph.of(InferConfig(stages=tuple(stages)), self.index.schema)
        return graph, {name: self.data.draw(st.booleans()) for name in graph.nodes}

    def shards(self) -> list[tuple[tuple[int, int], ...]]:
        """Ranges of each, of the rows in an order of their own."""
        cuts = sorted(self.data.draw(st.sets(st.integers(1, ROWS_THERE - 1), max_size=4), "cuts"))
        bounds = [0, *cuts, ROWS_THERE]
        ranges = list(itertools.pairwise(bounds))
        ranges = self.data.draw(st.permutations(ranges))
        middle = self.data.draw(st.integers(1, len(ranges)))
        return [tuple(one) for one in (ranges[:middle], ranges[middle:]) if one]

    def load(self, lease: int, ranges: tuple[tuple[int, int], ...]) -> list[Chunk]:
        """Chunks; rows that kill loaders are in none."""
        chunks = []
        for low, high in ranges:
            positions = list(range(low, high))
            while positions:
                size = self.data.draw(st.integers(1, len(positions)))
                part, positions = positions[:size], positions[size:]
                if size == 1 and self.data.draw(st.integers(0, 5)) == 0:
                    self.verdicts[part[0]] = "killed its loader"
                    continue
                errors = {at: f"unreadable {one}" for at, one in enumerate(part) if self._unlucky()}
                self.read_errors |= {part[at]: text for at, text in errors.items()}
                name = f"c{lease}-{part[0]}"
                values = [None if at in errors else one for at, one in enumerate(part)]
                rows = [None if one is None else f"r{one}" for one in values]
                self.segments[name] = pa.table({"n": pa.array(values, pa.int64()), "row": rows})
                chunks.append(Chunk(name, ((part[0], part[-1] + 1),), errors))
        return chunks

    def _unlucky(self) -> bool:
        return bool(self.data.draw(st.integers(0, 7)) == 0)

    def work(self, leases: dict[int, list[Chunk]]) -> None:
        """All stages, each over the items of all shards."""
        at: dict[str, list[tuple[int, str, int, tuple[int, ...]]]] = {ROWS: []}
        for lease, chunks in leases.items():
            self.pieces[lease] = {name: [] for name in self.graph.nodes}
            for chunk in chunks:
                first = chunk.ranges[0][0]
                for place in range(len(self.segments[chunk.segment])):
                    if place not in chunk.errors:
                        at[ROWS].append((lease, chunk.segment, place, (first + place,)))
        for name, node in self.graph.nodes.items():
            at[name] = []
            waiting = list(at[node.parent])
            number = 0
            while waiting:
                size = self.data.draw(st.integers(1, len(waiting)))
                batch, waiting = waiting[:size], waiting[size:]
                # Batches may overtake each other within a shard, as they do with two processes.
                if waiting and self.data.draw(st.booleans()):
                    batch, waiting = waiting[:size], batch + waiting[size:]
                at[name] += self._batch(name, f"{name}-{number}", batch)
                number += 1

    def _batch(
        self, name: str, segment: str, batch: list[tuple[int, str, int, tuple[int, ...]]]
    ) -> list[tuple[int, str, int, tuple[int, ...]]]:
        values: list[int | None] = []
        counts, errors, after = [], {}, []
        for place, (lease, _, _, path) in enumerate(batch):
            if self._unlucky():
                errors[place] = f"failed {path}"
                self.truth[name][path] = ("error", errors[place])
                counts.append(0)
                values += [] if self.many[name] else [None]
                continue
            count = self.data.draw(st.integers(0, 3)) if self.many[name] else 1
            made = [len(self.truth[name]) * 10 + one for one in range(count)]
            self.truth[name][path] = made if self.many[name] else made[0]
            for one in range(count):
                below = (*path, one) if self.many[name] else path
                after.append((lease, segment, len(values) + one, below))
            values += made
            counts.append(count)
        nothing = not values or (len(errors) == len(batch) and self.data.draw(st.booleans()))
        if not nothing:
            self.segments[segment] = pa.table(
                {f"v_{name}": pa.array(values, pa.int64()), "n": [0] * len(values)}
            )
        self._cut(name, "" if nothing else segment, batch, counts, errors)
        return after

    def _cut(
        self,
        name: str,
        answer: str,
        batch: list[tuple[int, str, int, tuple[int, ...]]],
        counts: list[int],
        errors: dict[int, str],
    ) -> None:
        """Pieces: runs of items that adjoin in one segment, of one shard."""
        at = start = 0
        for stop in range(1, len(batch) + 1):
            if stop < len(batch):
                lease, segment, place, _ = batch[stop]
                before = batch[stop - 1]
                if (lease, segment, place) == (before[0], before[1], before[2] + 1):
                    continue
            many = self.many[name] and (bool(answer) or self.data.draw(st.booleans()))
            own = np.array(counts[start:stop], "<i4").tobytes() if many else b""
            wrong = {one - start: errors[one] for one in errors if start <= one < stop}
            first = batch[start][2]
            piece = Piece(batch[start][1], first, first + stop - start, answer, at, own, wrong)
            self.pieces[batch[start][0]][name].append(piece)
            at += sum(counts[start:stop]) if self.many[name] else stop - start
            start = stop

    # --- the account, row by row --------------------------------------------------------------------

    def value(self, names: tuple[str, ...], path: tuple[int, ...]) -> Any:
        """Of the last of these stages, for one item."""
        name, rest = names[0], names[1:]
        found = self.truth[name][path] if path in self.truth[name] else None
        if found is None or isinstance(found, tuple):
            return None
        if self.many[name]:
            return [self.value(rest, (*path, one)) if rest else value for one, value in enumerate(found)]
        return self.value(rest, path) if rest else found

    def error(self, position: int) -> str | None:
        """Of one row."""
        if position in self.read_errors or position in self.verdicts:
            return (self.read_errors | self.verdicts)[position]
        for name in self.graph.nodes:
            failed = {
                path: found[1]
                for path, found in self.truth[name].items()
                if path[0] == position and isinstance(found, tuple)
            }
            if failed:
                path = min(failed)
                item = ".".join(str(one) for one in path[1:])
                return f"{name}, item {item}: {failed[path]}" if item else f"{name}: {failed[path]}"
        return None

    def rows(self, ranges: tuple[tuple[int, int], ...]) -> list[dict[str, Any]]:
        """What a shard's file should hold."""
        rows = []
        for position in (one for low, high in ranges for one in range(low, high)):
            gone = position in self.read_errors or position in self.verdicts
            row: dict[str, Any] = {
                "row": self.index.identities(position, position + 1)[0],
                "n": None if gone else position,
                "input_row": None if gone else f"r{position}",
            }
            for name in self.graph.kept:
                row[f"v_{name}"] = self.value(self.graph.path(name), (position,))
            rows.append(row | {"error": self.error(position)})
        return rows


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_shard_is_what_an_account_of_its_rows_says(data: st.DataObject, index: RowIndex) -> None:
    world = World(data, index)
    shards = dict(enumerate(world.shards()))
    chunks = {lease: world.load(lease, ranges) for lease, ranges in shards.items()}
    world.work(chunks)
    for lease, ranges in shards.items():
        pieces = {name: tuple(data.draw(st.permutations(own))) for name, own in world.pieces[lease].items()}
        verdicts = {
            one: text
            for one, text in world.verdicts.items()
            if any(low <= one < high for low, high in ranges)
        }
        order = Write(0, lease, "w", ranges, tuple(chunks[lease]), pieces, verdicts)
        shard = Shard(world.graph, index, world.schemas, (), order, world.segments.__getitem__)
        step = data.draw(st.integers(1, ROWS_THERE))
        tables = list(shard.slabs(slab_rows=step))
        assert all(table.schema.equals(shard.schema) for table in tables)
        assert pa.concat_tables(tables).to_pylist() == world.rows(ranges)


def plain(index: RowIndex, pieces: tuple[Piece, ...], columns: tuple[str, ...] = ()) -> pa.Table:
    """One stage over rows 0 to 4."""
    graph = Graph.of(InferConfig(stages=(StageConfig(name="a"),)), index.schema)
    segments = {
        "c": pa.table({"n": [0, 1, 2, 3], "row": list("abcd")}),
        "x": pa.table({"y": pa.array([1, 2, 3, 4], pa.int32())}),
    }
    schemas = {"a": marked(pa.schema([("y", pa.int64())]), pa.schema([]), False)}
    order = Write(0, 1, "w", ((0, 4),), (Chunk("c", ((0, 4),), {}),), {"a": pieces})
    return pa.concat_tables(Shard(graph, index, schemas, columns, order, segments.__getitem__).slabs())


def test_columns_of_the_sink_are_all_there_is(index: RowIndex) -> None:
    table = plain(index, (Piece("c", 0, 4, "x", 0, b"", {}),), ("y",))
    assert table.column_names == ["row", "y", "error"] and table.column("y").to_pylist() == [1, 2, 3, 4]
    assert table.schema.field("y").type == pa.int64(), "as agreed upon, not as it came"


@pytest.mark.parametrize(
    ("pieces", "says"),
    [
        ((Piece("c", 0, 3, "x", 0, b"", {}),), "row 3 of a shard did not go through stage a"),
        ((Piece("c", 0, 4, "", 0, b"", {1: "bad"}),), "row 0 of a shard did not go through stage a"),
        ((Piece("c", 0, 3, "x", 0, b"", {}), Piece("c", 2, 4, "x", 2, b"", {})), "came twice"),
        ((Piece("other", 0, 4, "x", 0, b"", {}),), "belong to no row of this shard"),
        ((Piece("c", 0, 5, "x", 0, b"", {}),), "belong to no row of this shard"),
        ((Piece("c", 0, 4, "x", 0, b"\0" * 16, {}),), "4 counts"),
    ],
)
def test_a_lost_or_doubled_row_is_never_written(
    index: RowIndex, pieces: tuple[Piece, ...], says: str
) -> None:
    with pytest.raises(InferError) as caught:
        plain(index, pieces)
    assert says in caught.value.what


def test_a_row_that_nobody_read_is_never_left_out(index: RowIndex) -> None:
    graph = Graph.of(InferConfig(stages=(StageConfig(name="a"),)), index.schema)
    schemas = {"a": marked(pa.schema([("y", pa.int64())]), pa.schema([]), False)}
    with pytest.raises(InferError, match="row 0 of a shard was not read"):
        Shard(graph, index, schemas, (), Write(0, 1, "w", ((3, 5),), (), {}), {}.__getitem__)
    order = Write(0, 1, "w", ((3, 5),), (), {}, {3: "gone", 4: "gone too"})
    (table,) = Shard(graph, index, schemas, (), order, {}.__getitem__).slabs()
    assert table.column("error").to_pylist() == ["gone", "gone too"] and table.column("n").null_count == 2


def test_names_that_meet_are_refused(index: RowIndex) -> None:
    def schema_of(stages: tuple[StageConfig, ...], columns: tuple[str, ...] = (), **own: str) -> pa.Schema:
        graph = Graph.of(InferConfig(stages=stages), index.schema)
        schemas = {
            name: marked(pa.schema([(column, pa.int64())]), pa.schema([]), False)
            for name, column in own.items()
        }
        return output_schema(graph, schemas, columns)

    two = (StageConfig(name="a"), StageConfig(name="b", after="rows"))
    assert schema_of(two, a="x", b="y").names == ["row", "n", "input_row", "x", "y", "error"]
    for own, says in [
        ({"a": "n", "b": "y"}, "'n': one of the source, one of stage a"),
        ({"a": "x", "b": "x"}, "'x': one of stage a, one of stage b"),
        ({"a": "error", "b": "x"}, "'error': one of shoestring, one of stage a"),
    ]:
        with pytest.raises(ConfigError) as caught:
            schema_of(two, **own)
        assert says in caught.value.what
    hidden = (StageConfig(name="a", keep=False), StageConfig(name="b", after="rows"))
    assert schema_of(hidden, a="n", b="y").names == ["row", "n", "input_row", "y", "error"]
    with pytest.raises(ConfigError, match="did you mean 'x'"):
        schema_of(two, ("xx",), a="x", b="y")


def test_identities_are_those_of_the_index(tmp_path: Path) -> None:
    for number, rows in enumerate([1, 300, 2, 1, 70]):
        (tmp_path / f"{number}.txt").write_text("line\n" * rows)
    index = RowIndex.build(RowSourceConfig(files=(str(tmp_path),)))
    ranges = ((5, 374), (0, 2))
    wanted = [*index.identities(5, 374), *index.identities(0, 2)]
    assert identities(index, ranges, 0, 371).to_pylist() == wanted
    assert identities(index, ranges, 290, 370).to_pylist() == wanted[290:370]
