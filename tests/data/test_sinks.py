"""Formats of output, rows that do not fit, sinks that cannot be written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.errors import SinkError
from shoestring.data.fitting import cast, fitted, fitted_column
from shoestring.data.output_state import Output, Staged, file_name
from shoestring.data.outputs import Outputs, Staging
from shoestring.data.row_index import RowIndex, RowSourceConfig, read_rows
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_files import files_of_sink
from shoestring.data.sinks import SUFFIXES, check_sink, owner_of
from shoestring.data.tally import MAX_KINDS, OTHER, Tally, kind_of_error
from tests.disks import resize, small_disk

NAN = float("nan")
SCHEMA = pa.schema(
    [
        ("row", pa.string()), ("name", pa.string()), ("score", pa.float32()), ("box", pa.list_(pa.float64())),
        ("tags", pa.list_(pa.struct([("a", pa.int64())]))), ("at", pa.timestamp("us", "UTC")),
        ("image", pa.binary()), ("error", pa.string()),
    ]
)  # fmt: skip


def rows(count: int = 3, first: int = 0) -> pa.Table:
    """One of each kind of trouble for a text format."""
    made = []
    for n in range(first, first + count):
        bad = n % 3 == 2
        made.append({
            "row": f"in.csv#{n}", "name": None if bad else f'né "{n}", \n\\x',
            "score": NAN if n % 2 else n / 4, "box": None if bad else [n, NAN],
            "tags": [{"a": n}, {"a": None}], "at": n * 1_000_000, "image": None if bad else b"\x89PNG%d" % n,
            "error": f"decode: ValueError: bad {n}" if bad else None,
        })  # fmt: skip
    return pa.Table.from_pylist(made, SCHEMA)


def staged(sink: SinkConfig, *tables: pa.Table, schema: pa.Schema = SCHEMA, lease_id: int = 7) -> Staged:
    writer = Staging(sink, "job").writer(lease_id, "w0.1", schema)
    for table in tables:
        writer.write(table)
    return writer.close()


def published(sink: SinkConfig, *tables: pa.Table, schema: pa.Schema = SCHEMA) -> tuple[str, Output]:
    """The path of a file with these rows, and what is known of it."""
    outputs = Outputs(sink, "job")
    outputs.open([])
    done = staged(sink, *tables, schema=schema)
    ranges = ((0, done.rows),)
    output = Output(7, file_name(7, ranges, SUFFIXES[sink.format]), ranges, done)
    outputs.publish(output)
    outputs.finish({})
    return f"{sink.path}/{output.name}", output


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """For comparing: NaN equals itself."""
    return json.loads(json.dumps(table.to_pylist(), default=str))  # type: ignore[no-any-return]


# --- formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zstd", "snappy", "none"])
def test_parquet_is_what_was_written_and_small_tables_share_a_row_group(
    tmp_path: Path, compression: Any
) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"), compression=compression)
    path, output = published(sink, *(rows(5, first=5 * n) for n in range(40)))
    found = ds.dataset(str(tmp_path / "out")).to_table()
    assert plain(found) == plain(rows(200)) and found.schema.equals(SCHEMA)
    about = pa.parquet.read_metadata(path)
    assert about.num_row_groups == 1
    used = about.row_group(0).column(0).compression
    assert used == {"zstd": "ZSTD", "snappy": "SNAPPY", "none": "UNCOMPRESSED"}[compression]
    assert output.staged.rows == 200 and output.staged.failed == 66
    assert output.staged.errors == {"decode: ValueError": 66}
    assert output.staged.not_numbers == {"score": 100, "box": 134}
    assert output.staged.facts == {"first_error": "in.csv#2: decode: ValueError: bad 2"}


def test_a_file_without_rows_is_whole_in_every_format(tmp_path: Path) -> None:
    for kind in SUFFIXES:
        sink = SinkConfig(path=str(tmp_path / kind), format=kind, text="name")  # type: ignore[arg-type]
        path, output = published(sink)
        assert output.staged.rows == 0 and os.path.getsize(path) == output.staged.size_bytes
    assert ds.dataset(str(tmp_path / "parquet")).count_rows() == 0


def test_json_lines_say_everything_but_nan(tmp_path: Path) -> None:
    path, output = published(SinkConfig(path=str(tmp_path), format="jsonl"), rows(), rows(2, first=3))
    lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert len(lines) == 5 and lines[0] == {
        "row": "in.csv#0", "name": 'né "0", \n\\x', "score": 0.0, "box": [0.0, None],
        "tags": [{"a": 0}, {"a": None}], "at": "1970-01-01 00:00:00.000000Z", "image": "iVBORzA=",
        "error": None,
    }  # fmt: skip
    assert lines[1]["score"] is None and output.staged.not_numbers["score"] == 2


def test_csv_is_read_by_others_and_by_us(tmp_path: Path) -> None:
    path, _ = published(SinkConfig(path=str(tmp_path), format="csv"), rows(), rows(2, first=3))
    with open(path, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 5 and found[1] | {"at": ""} == {
        "row": "in.csv#1", "name": 'né "1", \n\\x', "score": "nan", "box": "[1.0,null]",
        "tags": '[{"a":1},{"a":null}]', "at": "", "image": "iVBORzE=", "error": "",
    }  # fmt: skip
    nothing = pa_csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    table = pa_csv.read_csv(path, convert_options=nothing, parse_options=parse)
    assert table.column("name").null_count == 1 and table.column("error").null_count == 4
    index = RowIndex.build(RowSourceConfig(files=(path,)))
    ours, errors = read_rows(index, [(0, 5)], 1 << 20)
    assert not errors and ours.column("name").to_pylist()[:2] == rows().column("name").to_pylist()[:2]


def test_text_has_a_line_for_each_row(tmp_path: Path) -> None:
    path, output = published(SinkConfig(path=str(tmp_path), format="text", text="name"), rows(4))
    assert Path(path).read_bytes() == b"".join(
        f'né "{n}", \\n\\x\n'.encode() if n != 2 else b"\n" for n in range(4)
    )
    assert output.staged.rows == 4
    one = pa.schema([("row", pa.string()), ("n", pa.int64()), ("error", pa.string())])
    table = pa.table({"row": ["a"], "n": [5], "error": pa.nulls(1, pa.string())})
    path, _ = published(SinkConfig(path=str(tmp_path / "b"), format="text"), table, schema=one)
    assert Path(path).read_text() == "5\n"


def test_text_needs_to_know_its_column(tmp_path: Path) -> None:
    for name, said in (("", "there are 6 columns"), ("nmae", "no column 'nmae'")):
        with pytest.raises(SinkError, match=said):
            staged(SinkConfig(path=str(tmp_path), format="text", text=name), rows())


def test_images_are_files_and_their_rows_name_them(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"), format="images", image_suffix=".jpg")
    _, output = published(sink, rows(70), rows(5, first=70))
    found = ds.dataset(sink.path).to_table()
    assert found.num_rows == 75 and found.drop_columns("image").schema.equals(SCHEMA.remove(6))
    wanted = rows(75).column("image").to_pylist()
    names = found.column("image").to_pylist()
    assert [name and (Path(sink.path) / name).read_bytes() for name in names] == wanted
    assert output.staged.facts["images"] == "50" and names[0] == "_images/shard-000007/00000000.jpg"


def test_images_need_bytes(tmp_path: Path) -> None:
    for column, said in (("name", "is string, not bytes"), ("pixels", "is not there")):
        with pytest.raises(SinkError, match=f"{said}(.|\n)*sink.image"):
            staged(SinkConfig(path=str(tmp_path), format="images", image=column), rows())
    assert not list(tmp_path.glob("**/*.parquet"))


# --- rows that do not fit ----------------------------------------------------------------------------------


def test_a_row_that_does_not_fit_costs_nobody_else(tmp_path: Path) -> None:
    schema = pa.schema([("row", pa.string()), ("n", pa.int32()), ("x", pa.float32()), ("error", pa.string())])
    table = pa.table({
        "row": ["a", "b", "c", "d", "e"], "n": ["1", "two", None, "4", "5000000000"],
        "x": [1.0, 2.0, 1e300, 4.0, 5.0], "error": ["early: bad", None, None, None, None], "extra": [1] * 5,
    })  # fmt: skip
    path, output = published(SinkConfig(path=str(tmp_path)), table, schema=schema)
    found = ds.dataset(path).to_table()
    assert found.schema.equals(schema)
    assert found.column("n").to_pylist() == [1, None, None, 4, None]
    assert found.column("x").to_pylist() == [1.0, 2.0, None, 4.0, 5.0]
    errors = found.column("error").to_pylist()
    assert errors[0] == "early: bad" and errors[3] is None
    assert errors[1].startswith("column n: ") and "two" in errors[1]
    assert errors[2] == "column x: a number is too large for float" and errors[4].startswith("column n: ")
    assert output.staged.failed == 4 and sum(output.staged.errors.values()) == 4


def test_a_column_that_is_not_there_is_an_error_of_each_row_that_says_nothing_else(tmp_path: Path) -> None:
    table = rows(3).drop_columns("score")
    _, output = published(SinkConfig(path=str(tmp_path)), table)
    found = ds.dataset(str(tmp_path)).to_table().column("error").to_pylist()
    assert found == ["column score: there is none"] * 2 + ["decode: ValueError: bad 2"]
    assert output.staged.failed == 3


def test_rows_that_do_not_fit_need_a_place_for_their_error(tmp_path: Path) -> None:
    schema = pa.schema([("n", pa.int32())])
    writer = Staging(SinkConfig(path=str(tmp_path)), "job").writer(1, "w", schema)
    writer.write(pa.table({"n": pa.array([1, 2], pa.int64())}))
    with pytest.raises(SinkError, match="does not fit"):
        writer.write(pa.table({"n": ["x"]}))


KINDS = st.sampled_from(
    [
        (pa.string(), st.text("0123456789.-x", max_size=4)), (pa.int64(), st.integers(-(2**40), 2**40)),
        (pa.float64(), st.floats(-1e40, 1e40, width=64) | st.sampled_from([NAN, 1e39, float("inf")])),
        (pa.list_(pa.int64()), st.lists(st.integers(-300, 300), max_size=3)),
        (pa.list_(pa.float64()), st.lists(st.sampled_from([1.5, 2.0, 1e300, NAN]), max_size=3)),
        (
            pa.struct([("a", pa.int64()), ("b", pa.string())]),
            st.fixed_dictionaries(
                {"a": st.none() | st.integers(0, 300), "b": st.none() | st.sampled_from(["", "x"])}
            ),
        ),
        (pa.null(), st.none()),
    ]
)  # fmt: skip
TARGETS = st.sampled_from(
    [
        pa.int8(), pa.int32(), pa.float32(), pa.float64(), pa.string(), pa.bool_(), pa.list_(pa.int8()),
        pa.list_(pa.float32()), pa.struct([("a", pa.int8())]), pa.binary(),
        pa.struct([("b", pa.string()), ("a", pa.int64())]),
    ]
)  # fmt: skip


def alone(value: pa.Scalar, old: pa.DataType, new: pa.DataType) -> tuple[Any, bool]:
    """The reference: what becomes of a value that is all by itself."""
    try:
        return cast(pa.array([value.as_py()], old), new)[0].as_py(), False
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return None, value.is_valid


COLUMNS = KINDS.flatmap(lambda kind: st.tuples(st.just(kind[0]), st.lists(st.none() | kind[1], max_size=30)))


@given(COLUMNS, TARGETS, st.integers(0, 30))
def test_each_row_is_judged_by_itself_alone(
    made: tuple[pa.DataType, list[Any]], target: pa.DataType, cut: int
) -> None:
    old, values = made
    column = pa.chunked_array(
        [pa.array(values[:cut], old), pa.array(values, old).slice(min(cut, len(values)))]
    )
    found, errors = fitted_column(column, target)
    assert found.type == target and len(found) == len(values)
    wanted = [alone(value, old, target) for chunk in column.chunks for value in chunk]
    assert repr(found.to_pylist()) == repr([value for value, _ in wanted])
    assert sorted(errors) == [place for place, (_, bad) in enumerate(wanted) if bad]
    assert all(errors.values())


def test_nothing_is_lost_that_arrow_would_lose_in_silence() -> None:
    whole = pa.struct([("a", pa.int64())])
    more = pa.array([{"a": 1, "b": None}, {"a": 2, "b": "x"}, None])
    found, errors = fitted_column(pa.chunked_array([more]), whole)
    assert found.to_pylist() == [{"a": 1}, None, None] and errors == {1: "the schema has no field b"}
    lists = pa.chunked_array([pa.array([[{"a": 1, "b": "x"}], [{"a": 2, "b": None}]])])
    assert list(fitted_column(lists, pa.list_(whole))[1]) == [0]
    assert list(fitted_column(pa.chunked_array([pa.array([0, 5, 1])]), pa.bool_())[1]) == [1]
    infinite = pa.chunked_array([pa.array([float("inf"), 1e300])])
    assert list(fitted_column(infinite, pa.float32())[1]) == [1]


def test_what_fits_is_not_copied() -> None:
    table = rows(1000)
    found, errors = fitted(table, SCHEMA)
    assert not errors and found.column("score").chunk(0).buffers()[1].address == (
        table.column("score").chunk(0).buffers()[1].address
    )


# --- counting ----------------------------------------------------------------------------------------------


def test_kinds_of_errors_are_few_whatever_is_said() -> None:
    tally = Tally()
    texts = [f"{'abcdefghij'[n // 10 % 10]}{'klmnopqrst'[n % 10]}: ValueError: row {n}" for n in range(100)]
    for part in (texts[:60], texts[60:], texts[:10]):
        tally.add(pa.table({"error": pa.array([None, *part], pa.string())}))
    assert len(tally.errors) == MAX_KINDS and sum(tally.errors.values()) == tally.failed == 110
    assert tally.errors["ak: ValueError"] == 2 and tally.errors[OTHER] == 51
    for text, kind in (
        ("", OTHER), (": x", ": x"), ("a" * 99, "a" * 60), ("\n\nx", OTHER),
        ("stage s1: row 17: bad", "stage s1: row N"), ("file 3 is gone", "file N is gone"),
    ):  # fmt: skip
        assert kind_of_error(text) == kind


@given(st.lists(st.none() | st.lists(st.none() | st.lists(st.sampled_from([1.0, NAN, None]), max_size=3),
                                     max_size=3), max_size=8), st.integers(0, 4))  # fmt: skip
def test_nan_is_counted_at_any_depth(values: list[Any], skip: int) -> None:
    deep = pa.array(values, pa.list_(pa.list_(pa.float32()))).slice(skip)
    wanted = repr(deep.to_pylist()).count("nan")
    tally = Tally()
    records = pa.StructArray.from_arrays([deep, pc.is_null(deep)], ["d", "other"])
    tally.add(pa.table({"deep": deep, "records": records, "names": pa.array(["nan"] * len(deep))}))
    assert tally.not_numbers == ({"deep": wanted, "records": wanted} if wanted else {})


# --- places ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet."""
    return {
        "local": f"{tmp_path}/a/b", "file": f"file://{tmp_path}/a/b", "memory": f"memory://sinks{tmp_path}/a/b",
    }[request.param]  # fmt: skip


def test_a_sink_that_can_be_written_is_made_and_left_as_it_was(place: str) -> None:
    sink = SinkConfig(path=place)
    check_sink(sink)
    files = files_of_sink(place)
    assert files.listed() == {} and owner_of(sink) is None
    stream = files.create("x")
    stream.write(b"123")
    files.settle(stream)
    check_sink(sink)
    assert files.listed() == {"x": 3}


def test_the_few_operations_are_the_same_everywhere(place: str) -> None:
    files = files_of_sink(place)
    assert files.listed() == {} and files.size("a") is None is files.read("a")
    files.make("deep/er")
    files.remove("never")
    assert files.replace("deep/a", b"1") and not files.replace("deep/a", b"22", fresh=True)
    assert files.read("deep/a") == b"1" and files.replace("deep/a", b"333") and files.size("deep/a") == 3
    files.replace("deep/er/b", b"b")
    files.move("deep/a", "c")
    files.move("deep/er", "moved")
    files.sync()
    assert files.listed() == {"deep": -1, "moved": -1, "c": 3} or files.listed() == {"moved": -1, "c": 3}
    assert files.listed("moved") == {"b": 1} and files.read("c") == b"333"
    files.remove("moved")
    files.remove("c")
    assert files.listed("moved") == {} and files.size("c") is None


def test_many_may_write_the_same_small_file_at_once(place: str) -> None:
    """As workers do in containers, where all have the same process number."""
    files = files_of_sink(place)
    files.make()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda n: files.replace("schema.json", b"%d" % (n % 10)), range(200)))
    assert files.listed() == {"schema.json": 1}


def test_places_that_make_no_sense_are_told_before_the_job(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, said in (
        ("", "no place for its output"), (str(tmp_path / "file"), "name a folder"),
        (str(tmp_path / "file" / "below"), "name a folder"), ("nosuch://bucket/x", "nosuch"),
        ("/proc/nothing", "see that the place|let this user|vanished"),
    ):  # fmt: skip
        with pytest.raises(SinkError, match=said):
            check_sink(SinkConfig(path=path))


def test_a_protocol_whose_package_is_missing_names_it() -> None:
    with pytest.raises(SinkError, match="(?s)gcsfs.*install the package"):
        check_sink(SinkConfig(path="gs://bucket/folder"))


def test_passwords_in_urls_are_not_shown() -> None:
    for url in ("ftp://me:secret@127.0.0.1:1/x", "nosuch://me:secret@host/x"):
        with pytest.raises(SinkError) as caught:
            check_sink(SinkConfig(path=url))
        assert "secret" not in str(caught.value)


def test_a_manifest_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "_manifest.json").write_text("[1, 2]")
    for ask in (check_sink, owner_of):
        with pytest.raises(SinkError, match="not the manifest of a job"):
            ask(SinkConfig(path=str(tmp_path)))
    assert (tmp_path / "_manifest.json").read_text() == "[1, 2]"


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    with small_disk(tmp_path / "disk", "256k") as disk:
        yield disk


def test_a_disk_that_fills_up_is_told_and_what_was_published_stays(full_soon: Path) -> None:
    sink = SinkConfig(path=str(full_soon))
    outputs = Outputs(sink, "job")
    outputs.open([])
    schema = pa.schema([("row", pa.string()), ("data", pa.binary()), ("error", pa.string())])
    kept: list[Output] = []

    def shard(number: int) -> pa.Table:
        return pa.table({
            "row": [f"r{number}"], "data": [os.urandom(50_000)], "error": pa.nulls(1, pa.string())
        })  # fmt: skip

    with pytest.raises(SinkError, match="(?s)No space left.*free some space") as caught:
        for number in range(20):
            writer = Staging(sink, "job").writer(number, "w", schema)
            try:
                writer.write(shard(number))
                done = writer.close()
            except BaseException:
                writer.abort()
                raise
            output = Output(number, file_name(number, ((number, number + 1),), ".parquet"),
                            ((number, number + 1),), done)  # fmt: skip
            outputs.publish(output)
            kept.append(output)
    assert str(full_soon) in caught.value.what
    found = ds.dataset(str(full_soon)).to_table()
    assert found.column("row").to_pylist() == [f"r{n}" for n in range(len(kept))] and len(kept) >= 3
    assert [p.name for p in full_soon.glob(".staging-job/*")] == ["schema.json"], "abort leaves nothing"
    resize(full_soon, "1m")
    again = Outputs(sink, "job")
    again.open(kept)
    done = staged(sink, shard(99), schema=schema, lease_id=99)
    again.publish(Output(99, file_name(99, ((99, 100),), ".parquet"), ((99, 100),), done))
    again.finish({})
    assert ds.dataset(str(full_soon)).count_rows() == len(kept) + 1


def test_a_sink_that_is_read_only_is_told(full_soon: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", full_soon], check=True)
    with pytest.raises(SinkError, match="(?s)Read-only.*let this user write there"):
        check_sink(SinkConfig(path=str(full_soon)))


def test_a_sink_that_vanishes_is_told(tmp_path: Path) -> None:
    sink = SinkConfig(path=str(tmp_path / "out"))
    outputs = Outputs(sink, "job")
    outputs.open([])
    done = staged(sink, rows())
    subprocess.run(["rm", "-rf", sink.path], check=True)
    output = Output(7, file_name(7, ((0, 3),), ".parquet"), ((0, 3),), done)
    with pytest.raises(
        SinkError, match="(?s)is committed, but its file in .* is gone.*bring the folder back"
    ):
        outputs.publish(output)
