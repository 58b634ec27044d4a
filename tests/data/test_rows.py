"""Rows of files by position: any ranges give what the whole file holds, and a bad row costs no other."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.base.errors import DataError
from shoestring.data.row_index import GONE, RowIndex, RowSourceConfig, read_rows
from shoestring.data.row_lines import CUT_ROWS
from shoestring.data.row_types import JSON_TEXT, as_type, fields_widened, settled

LIMIT = 1 << 20


def index_of(root: Path, **more: Any) -> RowIndex:
    return RowIndex.build(RowSourceConfig(files=(str(root / "**"),), **more))


def rows_of(index: RowIndex, start: int = 0, stop: int = -1) -> list[dict[str, Any]]:
    table, errors = read_rows(index, [(start, index.rows if stop < 0 else stop)], LIMIT)
    assert not errors
    found: list[dict[str, Any]] = table.to_pylist()
    return found


def write_all(root: Path, count: int) -> list[dict[str, Any]]:
    """The same rows in each format, one file after the other by name."""
    rows = [{"number": i, "half": i / 2, "word": f'w{i}, "{i}"' if i % 3 else None} for i in range(count)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (root / "a.jsonl").write_bytes(lines)
    (root / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (root / "c.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.Table.from_pylist(rows), root / "d.parquet", row_group_size=7)
    quoted = ["" if r["word"] is None else '"' + r["word"].replace('"', '""') + '"' for r in rows]
    text = "number,half,word\n" + "".join(
        f"{r['number']},{r['half']},{q}\n" for r, q in zip(rows, quoted, strict=True)
    )
    (root / "e.csv").write_text(text)
    return rows


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    rows = write_all(tmp_path, 50)
    index = index_of(tmp_path)
    assert index.rows == 250 and rows_of(index) == rows * 5
    assert [field.type for field in index.schema] == [pa.int64(), pa.float64(), pa.string()]
    assert index.identities(49, 52) == ["a.jsonl#49", "b.jsonl.gz#0", "b.jsonl.gz#1"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 250), st.integers(0, 250)), max_size=5))
def test_any_ranges_give_these_rows(tmp_path: Path, ends: list[tuple[int, int]]) -> None:
    rows = write_all(tmp_path, 50) * 5
    index = index_of(tmp_path)
    ranges = [(min(pair), max(pair)) for pair in ends]
    table, errors = read_rows(index, ranges, LIMIT)
    assert table.to_pylist() == [row for start, stop in ranges for row in rows[start:stop]]
    assert not errors


def test_reading_begins_near_where_it_is_wanted(tmp_path: Path) -> None:
    count = 3 * CUT_ROWS + 5
    (tmp_path / "a.txt").write_text("".join(f"line {i}\n" for i in range(count)))
    index = index_of(tmp_path)
    assert [row for row, _ in index.files[0].about.cuts] == [0, CUT_ROWS, 2 * CUT_ROWS, 3 * CUT_ROWS]
    for start in (CUT_ROWS - 1, CUT_ROWS, 2 * CUT_ROWS + 7, count - 1):
        assert rows_of(index, start, start + 1) == [{"text": f"line {start}"}]


def test_a_quoted_value_may_go_over_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x,y\n1,"two\nlines"\n2,one\n')
    assert rows_of(index_of(tmp_path)) == [{"x": 1, "y": "two\nlines"}, {"x": 2, "y": "one"}]


def test_csv_tells_numbers_by_how_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b,c,d,e\n1,007,1.5,x,\n2,8,2e3,1,\n")
    assert rows_of(index_of(tmp_path)) == [
        {"a": 1, "b": "007", "c": 1.5, "d": "x", "e": None},
        {"a": 2, "b": "8", "c": 2000.0, "d": "1", "e": None},
    ]


def test_files_that_are_no_tables_are_a_row_each(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8")
    assert rows_of(index_of(tmp_path)) == [
        {"name": "a.png", "bytes": b"\x89PNG"}, {"name": "b.jpg", "bytes": b"\xff\xd8"}
    ]  # fmt: skip


# --- bad input: the row, or the file, and nobody else ---------------------------------------------


def errors_of(root: Path, name: str, data: bytes) -> tuple[list[dict[str, Any]], dict[int, str]]:
    (root / name).write_bytes(data)
    index = index_of(root)
    table, errors = read_rows(index, [(0, index.rows)], 100)
    return table.to_pylist(), errors


def test_a_broken_json_line_is_an_error_of_its_own(tmp_path: Path) -> None:
    rows, errors = errors_of(tmp_path, "a.jsonl", b'{"x": 1}\n{"x": \n\n[2]\n{"x": 3}\n')
    assert rows == [{"x": 1}, {"x": None}, {"x": None}, {"x": 3}]
    assert "not JSON" in errors[1] and "not a record" in errors[2] and set(errors) == {1, 2}


def test_a_csv_row_of_another_width_is_an_error_of_its_own(tmp_path: Path) -> None:
    rows, errors = errors_of(tmp_path, "a.csv", b"x,y\n1,2\n3\n4,5\n")
    assert [row["x"] for row in rows] == [1, None, 4] and errors == {1: "1 values in a table of 2 columns"}


def test_text_that_is_not_utf8_is_an_error_of_its_own(tmp_path: Path) -> None:
    rows, errors = errors_of(tmp_path, "a.txt", b"one\n\xff\xfe\nthree\n")
    assert [row["text"] for row in rows] == ["one", None, "three"] and "not UTF-8: byte 0" in errors[1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_row_that_is_too_long_is_an_error_and_is_not_held(tmp_path: Path, name: str) -> None:
    long = b'"' + b"x" * 300 + b'"\n'
    head = b"y\n" if name == "a.csv" else b""
    (tmp_path / name).write_bytes(head + b'{"y":1}\n' + long + b'{"y":2}\n')
    index = index_of(tmp_path, max_row_bytes=100)
    table, errors = read_rows(index, [(0, 3)], 100)
    assert set(errors) == {1} and "larger than" in errors[1]
    assert table.num_rows == 3 and table.to_pylist()[2] != table.to_pylist()[1]


def test_a_damaged_row_group_costs_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"x": list(range(40)), "y": [f"{i}" * 20 for i in range(40)]}), path, row_group_size=10,
        compression="zstd", use_dictionary=False,
    )  # fmt: skip
    index = index_of(tmp_path)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data, about = bytearray(path.read_bytes()), os.stat(path)
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # a disk does not say that it forgot
    index = index_of(tmp_path)
    table, errors = read_rows(index, [(5, 25)], LIMIT)
    assert set(errors) == set(range(5, 15)) and "row group 1 is damaged" in errors[5]
    assert table.column("x").to_pylist() == list(range(5, 25)), "the other column is there"
    assert table.column("y").to_pylist()[15:] == [f"{i}" * 20 for i in range(20, 25)]


def test_a_file_that_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not a parquet file")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n' * 100)[:-30])
    (tmp_path / "c.jsonl").write_text('{"x": 1}\n')
    index = index_of(tmp_path)
    assert index.rows == 1 and [url.rsplit("/", 1)[1] for url, _ in index.skipped] == [
        "a.parquet",
        "b.jsonl.gz",
    ]
    with pytest.raises(DataError, match="cannot be read"):
        index_of(tmp_path, on_bad_file="stop")


def test_a_file_that_changes_or_goes_costs_its_own_rows(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text('{"x": 1}\n{"x": 2}\n')
    index = index_of(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"x": 3}\n')
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    (tmp_path / "b.jsonl").unlink()
    table, errors = read_rows(index, [(0, 6)], LIMIT)
    assert errors == dict.fromkeys(range(4), GONE)
    assert table.column("x").to_pylist() == [None] * 4 + [1, 2]


def test_schemas_of_several_files_are_put_together(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1, "only": "a"}\n')
    pq.write_table(pa.table({"x": [1.5], "late": [True]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"x": null, "deep": {"k": [1]}}\n{"deep": {"m": 2, "k": [0.5]}}\n')
    rows = rows_of(index_of(tmp_path))
    assert [row["x"] for row in rows] == [1.0, 1.5, None, None]
    assert rows[3]["deep"] == {"k": [0.5], "m": 2} and rows[1]["late"] is True and rows[0]["only"] == "a"
    assert index_of(tmp_path, columns=("x",)).schema.names == ["x"]
    with pytest.raises(DataError, match="choose from: x, only"):
        index_of(tmp_path, columns=("z",))


def test_an_index_is_kept_as_it_is(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = write_all(data, 20)
    index = index_of(data)
    index.save(tmp_path / "index")
    again = RowIndex.load(tmp_path / "index")
    assert again.fingerprint == index.fingerprint and again.schema == index.schema
    assert rows_of(again) == rows * 5
    (tmp_path / "index").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="damaged"):
        RowIndex.load(tmp_path / "index")


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="no row in 1 files"):
        index_of(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        RowIndex.build(RowSourceConfig(files=(str(tmp_path / "none*"),)))


# --- types -----------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), VALUES, max_size=3), max_size=6))
def test_columns_hold_all_values_of_any_records(records: list[dict[str, Any]]) -> None:
    fields: dict[str, pa.DataType] = {}
    for record in records:
        fields = fields_widened(fields, record)
    for name, kind in fields.items():
        kind = settled(kind)
        column = pa.array([as_type(record.get(name), kind) for record in records], kind)
        for record, found in zip(records, column.to_pylist(), strict=True):
            value = record.get(name)
            if value is None:
                assert found is None
            elif kind == JSON_TEXT:
                assert json.loads(found) == value
            elif not isinstance(value, (dict, list)):
                assert found == value
