"""Parquet: rows that are too large, and columns that are of another type in each file."""

from __future__ import annotations

import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoestring.data.row_basics import TOO_LONG
from shoestring.data.row_index import RowIndex, RowSourceConfig, read_rows
from shoestring.data.row_sizes import sizes_of, without_large
from shoestring.data.row_types import JSON_TEXT

LIMIT = 1 << 20


def read(root: Path, limit: int = LIMIT) -> tuple[pa.Table, dict[int, str]]:
    index = RowIndex.build(RowSourceConfig(files=(f"{root}/**",), max_row_bytes=limit))
    return read_rows(index, [(0, index.rows)], limit)


# --- rows that are too large ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "small", "large"),
    [
        (pa.string(), "s", "s" * 5000),
        (pa.large_binary(), b"s", b"s" * 5000),
        (pa.list_(pa.int64()), [1, 2], [1] * 1000),
        (pa.list_(pa.string()), ["s"], ["s" * 2500, "t" * 2500]),
        (
            pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
            {"a": 1, "b": []},
            {"b": ["s" * 5000]},
        ),
    ],
)
def test_a_row_that_is_too_large_is_an_error_and_its_neighbours_stay(
    tmp_path: Path, kind: pa.DataType, small: Any, large: Any
) -> None:
    wanted = [small, None, large, small, small, large]
    schema = pa.schema([pa.field("n", pa.int64(), nullable=False), ("v", kind)])
    pq.write_table(pa.table({"n": list(range(6)), "v": wanted}, schema), tmp_path / "a.parquet")
    table, errors = read(tmp_path, 4000)
    assert errors == {2: TOO_LONG, 5: TOO_LONG}
    assert table.column("n").to_pylist() == [0, 1, None, 3, 4, None]
    expected = pa.array([None if at in errors else value for at, value in enumerate(wanted)], kind)
    assert table.column("v").to_pylist() == expected.to_pylist()
    assert read(tmp_path)[1] == {}


SIZED: list[tuple[pa.DataType, list[Any], list[int]]] = [
    (pa.int32(), [1, None], [4, 4]),
    (pa.bool_(), [True, False], [1, 1]),
    (pa.null(), [None, None], [0, 0]),
    (pa.string_view(), ["abc", None], [3, 0]),
    (pa.binary(3), [b"abc", None], [3, 3]),
    (pa.dictionary(pa.int8(), pa.string()), ["abc", None, "de", "abc"], [3, 0, 2, 3]),
    (pa.list_(pa.int16()), [[1, 2], None, [], [3]], [4, 0, 0, 2]),
    (pa.large_list(pa.string()), [["ab", "c"], ["d"]], [3, 1]),
    (pa.list_(pa.int64(), 2), [[1, 2], [3, 4]], [16, 16]),
    (pa.map_(pa.string(), pa.int32()), [[("a", 1), ("bc", 2)], []], [11, 0]),
    (pa.struct([("a", pa.string()), ("b", pa.int8())]), [{"a": "xy", "b": 1}, {"a": "", "b": 1}], [3, 1]),
]


@pytest.mark.parametrize(("kind", "values", "sizes"), SIZED)
def test_sizes_of_values_also_in_a_slice(kind: pa.DataType, values: list[Any], sizes: list[int]) -> None:
    made = pa.array(values, kind)
    assert sizes_of(made).tolist() == sizes
    assert sizes_of(made.slice(1)).tolist() == sizes[1:]
    assert sizes_of(made.slice(0, 1)).tolist() == sizes[:1]


def test_usual_rows_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoestring.data.row_sizes.sizes_of", lambda _: pytest.fail("measured"))
    table = pa.table({"x": ["a" * 100] * 1000}).slice(10, 5)
    assert without_large(table, 1000)[0] is table


def test_a_file_as_a_row_is_bounded_whatever_its_size_was_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    index = RowIndex.build(RowSourceConfig(files=(str(tmp_path / "a.png"),)))
    object.__setattr__(index.files[0].file, "size_bytes", 0)  # as of a store that does not tell
    assert read_rows(index, [(0, 1)], 100)[0].column("bytes").to_pylist() == [b"x" * 100]
    table, errors = read_rows(index, [(0, 1)], 99)
    assert errors == {0: TOO_LONG} and table.column("bytes").to_pylist() == [None]


# --- types that do not go together ---------------------------------------------------------------

MIXED: list[list[Any]] = [[1, None], [[1, 2], []], [{"a": 1}, {"a": None}], ["text", '"'], [True, False]]


def test_columns_of_several_kinds_are_json_text_as_those_of_lines_are(tmp_path: Path) -> None:
    for number, values in enumerate(MIXED):
        pq.write_table(pa.table({"x": values}), tmp_path / f"{number}.parquet")
    (tmp_path / "lines").mkdir()
    rows = [{"x": value} for values in MIXED for value in values]
    (tmp_path / "lines/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table, errors = read(tmp_path)
    assert not errors and table.schema.field("x").type == JSON_TEXT
    parquet, lines = table.column("x").to_pylist()[:10], table.column("x").to_pylist()[10:]
    assert parquet == lines and [None if text is None else json.loads(text) for text in parquet] == [
        value for values in MIXED for value in values
    ]


def test_only_the_part_that_differs_is_json_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [{"a": 1, "b": 2}]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [{"a": "t", "c": 0.5}]}), tmp_path / "b.parquet")
    table, errors = read(tmp_path)
    assert not errors
    assert table.column("x").to_pylist() == [{"a": "1", "b": 2, "c": None}, {"a": '"t"', "b": None, "c": 0.5}]


def test_what_json_does_not_know_is_text_in_it(tmp_path: Path) -> None:
    when = datetime(2024, 5, 1, 12)
    pq.write_table(pa.table({"x": [when], "y": [b"\xff\x00"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [math.nan], "y": [1]}), tmp_path / "b.parquet")
    table, errors = read(tmp_path)
    assert not errors and table.column("x").to_pylist() == ['"2024-05-01T12:00:00"', "null"]
    assert table.column("y").to_pylist() == ['"/wA="', "1"]


def test_text_is_text_however_it_is_coded(tmp_path: Path) -> None:
    kinds = [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string(), pa.large_string()]
    for number, kind in enumerate(kinds):
        pq.write_table(pa.table({"x": pa.array(["a"], kind)}), tmp_path / f"{number}.parquet")
    (tmp_path / "z.jsonl").write_text('{"x": "a"}\n')
    table, errors = read(tmp_path)
    assert not errors and table.column("x").to_pylist() == ["a"] * 5
    assert table.schema.field("x").type == pa.string()


def test_only_values_that_cannot_be_held_are_errors(tmp_path: Path) -> None:
    numbers = pa.array([1, (1 << 64) - 1, 3], pa.uint64())
    pq.write_table(pa.table({"x": numbers, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [4]}), tmp_path / "b.parquet")
    table, errors = read(tmp_path)
    assert set(errors) == {1} and errors[1].startswith("x: ")
    assert table.column("x").to_pylist() == [1, None, 3, 4]
    assert table.column("n").to_pylist() == [1, 2, 3, None]


def test_whole_numbers_that_no_number_holds_exactly_are_rounded_as_those_of_lines_are(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [(1 << 53) + 1, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [0.5]}), tmp_path / "b.parquet")
    table, errors = read(tmp_path)
    assert not errors and table.column("x").to_pylist() == [float(1 << 53), 1.0, 0.5]
