"""Loader and writer in one process: rows into shared memory, shards out of it into staged files."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import InferError, SinkError
from shoestring.data.output_state import Staged
from shoestring.data.row_index import RowIndex, RowSourceConfig
from shoestring.infer.config import InferConfig
from shoestring.infer.loading import Loader
from shoestring.infer.schemas import marked
from shoestring.infer.shared import Segments
from shoestring.infer.telling import Meter
from shoestring.infer.wire import Chunk, Discard, InferPayload, Load, Piece, Write
from shoestring.infer.writing import Writer
from tests.infer.kidstages import make_job


class FakeFile:
    """Keeps its rows; `full`: the disk is."""

    def __init__(self, full: bool) -> None:
        self.full, self.tables, self.state = full, list[pa.Table](), "open"

    def write(self, table: pa.Table) -> None:
        """Kept."""
        if self.full:
            raise SinkError("the disk is full", "free some")
        self.tables.append(table)

    def close(self) -> Staged:
        """Its rows are counted."""
        self.state = "closed"
        return Staged("name", sum(one.num_rows for one in self.tables))

    def abort(self) -> None:
        """Told."""
        self.state = "aborted"


class FakeStaging:
    """Files by lease."""

    def __init__(self, full: bool = False) -> None:
        self.full, self.files, self.discarded = full, dict[int, FakeFile](), list[str]()

    def writer(self, lease_id: int, who: str, schema: pa.Schema) -> FakeFile:
        """A new one."""
        self.files[lease_id] = FakeFile(self.full)
        return self.files[lease_id]

    def discard(self, staged: Staged) -> None:
        """Told."""
        self.discarded.append(staged.name)


def writer(payload: InferPayload, segments: Segments, staging: FakeStaging) -> Writer:
    config = InferConfig.model_validate_json(payload.config)
    return Writer(config, RowIndex.load(Path(payload.index)), segments, payload, Meter(FakeClock()), staging)


ORDER = Write(
    5, 9, "w0", ((2, 5),), (Chunk("c", ((2, 5),), {}),), {"s": (Piece("c", 0, 3, "x", 0, b"", {1: "bad"}),)}
)


@pytest.fixture
def segments(tmp_path: Path) -> Segments:
    (tmp_path / "segments").mkdir()
    made = Segments(tmp_path / "segments")
    made.write("c", pa.table({"n": [2, 3, 4]}))
    own = pa.schema([("twice", pa.int64())])
    answer = pa.table({"twice": [4, None, 8]}, schema=own)
    made.write("x", answer.replace_schema_metadata(marked(own, pa.schema([]), False).metadata))
    return made


def test_a_shard_is_staged_as_one_file(tmp_path: Path, segments: Segments) -> None:
    staging = FakeStaging()
    own = writer(make_job(tmp_path, "double"), segments, staging)
    wrote = own.write(ORDER)
    assert wrote.task == 5 and wrote.staged == Staged("name", 3) and staging.files[9].state == "closed"
    assert pa.concat_tables(staging.files[9].tables).to_pydict() == {
        "row": ["numbers.parquet#2", "numbers.parquet#3", "numbers.parquet#4"],
        "n": [2, 3, 4],
        "twice": [4, None, 8],
        "error": [None, "s: bad", None],
    }
    assert own.discard(Discard(6, Staged("late", 3))).staged is None and staging.discarded == ["late"]


def test_types_are_those_of_the_trial(tmp_path: Path, segments: Segments) -> None:
    schema = marked(pa.schema([("twice", pa.float64())]), pa.schema([]), False)
    payload = msgspec.structs.replace(
        make_job(tmp_path, "double"), schemas={"s": schema.serialize().to_pybytes()}
    )
    staging = FakeStaging()
    writer(payload, segments, staging).write(ORDER)
    assert staging.files[9].tables[0].schema.field("twice").type == pa.float64()


def test_a_file_that_cannot_be_written_is_given_up(tmp_path: Path, segments: Segments) -> None:
    staging = FakeStaging(full=True)
    own = writer(make_job(tmp_path, "double"), segments, staging)
    with pytest.raises(SinkError, match="full"):
        own.write(ORDER)
    assert staging.files[9].state == "aborted"
    with pytest.raises(InferError, match="did not go through stage s"):
        own.write(msgspec.structs.replace(ORDER, lease_id=10, pieces={}))
    assert 10 not in staging.files, "nothing is begun that cannot be right"


def test_the_real_sink_takes_it(tmp_path: Path, segments: Segments) -> None:
    payload = make_job(tmp_path, "double")
    config = InferConfig.model_validate_json(payload.config)
    own = Writer(config, RowIndex.load(Path(payload.index)), segments, payload, Meter(FakeClock()))
    staged = own.write(ORDER).staged
    assert staged is not None and staged.rows == 3 and staged.failed == 1
    (file,) = (tmp_path / "out").rglob(Path(staged.name).name)
    assert pq.read_table(file).column("twice").to_pylist() == [4, None, 8]
    own.discard(Discard(6, staged))
    assert not file.exists()


def test_many_small_files_become_one_chunk(tmp_path: Path, segments: Segments) -> None:
    (tmp_path / "many").mkdir()
    for number in range(300):
        (tmp_path / "many" / f"{number:03}.jsonl").write_text(f'{{"a": {number}}}\n' * (1 + number % 2))
    (tmp_path / "many" / "007.jsonl").write_text("{nonsense\n{}\n")
    index = RowIndex.build(RowSourceConfig(files=(str(tmp_path / "many"),)))
    (tmp_path / "many" / "009.jsonl").unlink()
    loader = Loader(index, segments, 1 << 20, Meter(FakeClock()))
    loaded = loader.do(Load(1, ((0, index.rows),), "rows"))
    table = segments.read("rows")
    assert loaded.rows == table.num_rows == index.rows == 450
    assert table.column("a").num_chunks == 1 and table.column("a").null_count == len(loaded.errors) + 1
    assert table.column("a").to_pylist()[-3:] == [298, 299, 299] and len(loaded.errors) == 3


def test_a_row_that_is_too_large_costs_itself(tmp_path: Path, segments: Segments) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n{"a": "' + "y" * 5000 + '"}\n{"a": "z"}\n')
    index = RowIndex.build(RowSourceConfig(files=(str(tmp_path / "rows.jsonl"),), max_row_bytes=1000))
    loaded = Loader(index, segments, 1000, Meter(FakeClock())).do(Load(1, ((0, 3),), "rows"))
    assert list(loaded.errors) == [1] and "larger than" in loaded.errors[1]
    assert segments.read("rows").column("a").to_pylist() == ["x", None, "z"]
