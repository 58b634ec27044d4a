"""CSV: a stray quote costs the line it stands in; looking and reading agree from every place."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shoestring.data import row_lines
from shoestring.data.row_basics import TOO_LONG
from shoestring.data.row_cursors import Cursors
from shoestring.data.row_index import RowIndex, RowSourceConfig, read_rows
from shoestring.data.row_lines import NO_END, QUOTES_BROKEN, QUOTES_CLOSED, QUOTES_OPEN, quotes_after
from tests.seeds import few


def index_of(path: Path, data: bytes, limit: int = 1 << 20) -> RowIndex:
    path.write_bytes(data)
    return RowIndex.build(RowSourceConfig(files=(str(path),), max_row_bytes=limit))


def all_of(index: RowIndex, limit: int = 1 << 20) -> tuple[list[dict[str, Any]], dict[int, str]]:
    table, errors = read_rows(index, [(0, index.rows)], limit)
    return table.to_pylist(), errors


def test_a_quote_without_an_end_costs_its_own_line(tmp_path: Path) -> None:
    index = index_of(tmp_path / "a.csv", b'x,y\n1,a\n2,"b\n3,c\n4,d\n')
    rows, errors = all_of(index)
    assert [row["x"] for row in rows] == [1, None, 3, 4] and errors == {1: NO_END}


def test_a_quote_that_the_next_quoted_value_would_end_costs_its_own_line(tmp_path: Path) -> None:
    index = index_of(tmp_path / "a.csv", b'x,y\n1,"a\n2,b\n3,"c"\n4,d\n')
    rows, errors = all_of(index)
    assert rows[1:] == [{"x": 2, "y": "b"}, {"x": 3, "y": "c"}, {"x": 4, "y": "d"}] and errors == {0: NO_END}


def test_a_quote_within_a_value_is_text(tmp_path: Path) -> None:
    index = index_of(tmp_path / "a.csv", b'x,y\n1,5" pipe\n2,b\n3,6" pipe\n')
    assert all_of(index) == ([{"x": 1, "y": '5" pipe'}, {"x": 2, "y": "b"}, {"x": 3, "y": '6" pipe'}], {})


def test_no_more_is_held_than_a_row_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, back = 0, row_lines.Lines.back

    def seen(self: row_lines.Lines, lines: Any) -> None:
        nonlocal most
        most = max(most, sum(line.size_bytes for line in lines))
        back(self, lines)

    monkeypatch.setattr(row_lines.Lines, "back", seen)
    good = b"".join(b"%d,value\n" % at for at in range(2000))
    index = index_of(tmp_path / "a.csv", b'x,y\n0,"open\n' + good, 500)
    rows, errors = all_of(index, 500)
    assert [row["x"] for row in rows] == [None, *range(2000)]
    assert set(errors) == {0} and errors[0].startswith(TOO_LONG) and NO_END in errors[0]
    assert 400 < most < 600


def test_a_quoted_value_over_many_lines_is_one_row_up_to_the_limit(tmp_path: Path) -> None:
    text = "line\n" * 90
    data = f'x,y\n1,"{text}"\n2,b\n'.encode()
    assert all_of(index_of(tmp_path / "a.csv", data, 500), 500)[0][0] == {"x": 1, "y": text}
    rows, errors = all_of(index_of(tmp_path / "b.csv", data, 400), 400)
    assert 0 in errors and rows[-1] == {"x": 2, "y": "b"}


def test_a_value_may_be_as_long_as_its_row(tmp_path: Path) -> None:
    text = "y" * 300_000  # the csv module's own bound is 131,072
    assert all_of(index_of(tmp_path / "a.csv", f"x,y\n1,{text}\n".encode())) == ([{"x": 1, "y": text}], {})


@pytest.mark.parametrize("seed", few(20, 300))
def test_looking_and_reading_agree_whatever_is_broken(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "CUT_ROWS", 3)
    draw = random.Random(seed)
    pieces = [
        "1,a",
        '2,"b"',
        '3,"two\nlines"',
        '4,"open',
        '5,5" x',
        '"6',
        '7"',
        "",
        '8,"""',
        "9,x" * 30,
        '"',
        ",",
    ]
    lines = [draw.choice(pieces) for _ in range(80)]
    index = index_of(tmp_path / "a.csv", ("x,y\n" + "\n".join(lines)).encode(), 60)
    rows, errors = all_of(index, 60)
    assert len(index.files[0].about.cuts) == -(-index.rows // 3)
    cursors = Cursors()
    for _ in range(60):
        start = draw.randrange(index.rows)
        stop = min(index.rows, start + draw.randrange(1, 9))
        for kept in (None, cursors):
            table, bad = read_rows(index, [(start, stop)], 60, kept)
            assert table.to_pylist() == rows[start:stop]
            assert bad == {at - start: text for at, text in errors.items() if start <= at < stop}
    cursors.close()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.text('a",\n ', max_size=6), st.text('a",\n ', max_size=6)), min_size=1, max_size=6)
)
def test_what_a_writer_writes_is_read_as_it_was(tmp_path: Path, values: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("x", "y"), *values])
    rows, errors = all_of(index_of(tmp_path / "a.csv", text.getvalue().encode()))
    # A row of white space alone is a blank line.
    assert not errors and rows == [{"x": x or None, "y": y or None} for x, y in values]


@pytest.mark.parametrize(
    ("line", "before", "after"),
    [
        (b"a,b\n", QUOTES_CLOSED, QUOTES_CLOSED), (b'a,"b\n', QUOTES_CLOSED, QUOTES_OPEN),
        (b'"a","b"\n', QUOTES_CLOSED, QUOTES_CLOSED), (b'"a""\n', QUOTES_CLOSED, QUOTES_OPEN),
        (b',"\n', QUOTES_CLOSED, QUOTES_OPEN), (b'a"b,c\n', QUOTES_CLOSED, QUOTES_CLOSED),
        (b'b",c\r\n', QUOTES_OPEN, QUOTES_CLOSED), (b'b"\r\n', QUOTES_OPEN, QUOTES_CLOSED),
        (b'b""\n', QUOTES_OPEN, QUOTES_OPEN), (b'b","c\n', QUOTES_OPEN, QUOTES_OPEN),
        (b'2,"c"\n', QUOTES_OPEN, QUOTES_BROKEN), (b'"', QUOTES_OPEN, QUOTES_CLOSED),
    ],
)  # fmt: skip
def test_quotes(line: bytes, before: int, after: int) -> None:
    assert quotes_after(line, before) == after
