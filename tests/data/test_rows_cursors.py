"""Who reads on in lines does not begin again: the same rows, and the file is unpacked once."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pytest

from shoestring.data import row_cursors, row_lines
from shoestring.data.row_cursors import Cursors
from shoestring.data.row_index import GONE, RowIndex, RowSourceConfig, read_rows
from shoestring.data.sources import SourceFile
from tests.data.files import count_opens, write
from tests.seeds import few

ROWS, LIMIT = 900, 1 << 20
NAMES = ["a.jsonl", "a.jsonl.gz", "a.csv.zst", "a.csv", "a.txt.gz"]


def index_of(folder: Path, name: str) -> RowIndex:
    lines = {"jsonl": '{{"x": {0}}}\n', "csv": "{0}\n", "txt": "{0}\n"}[name.split(".")[1]]
    head = "x\n" if ".csv" in name else ""
    write(folder / name, (head + "".join(lines.format(at) for at in range(ROWS))).encode())
    return RowIndex.build(RowSourceConfig(files=(str(folder / name),)))


def values(index: RowIndex, start: int, stop: int, cursors: Cursors | None) -> list[int]:
    table, errors = read_rows(index, [(start, stop)], LIMIT, cursors)
    assert not errors
    return [int(value) for value in table.column(0).to_pylist()]


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[SourceFile]:
    """Each time that a file is opened to read from it."""
    return count_opens(monkeypatch, row_cursors)


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_follow_each_other_open_a_file_once(
    tmp_path: Path, name: str, opens: list[SourceFile]
) -> None:
    index, cursors = index_of(tmp_path, name), Cursors()
    for at in range(0, ROWS, 30):
        if at % 90:  # others read the rest
            assert values(index, at, at + 30, cursors) == list(range(at, at + 30))
    assert len(opens) == 1
    assert cursors.beyond_rows == 300, "unpacked on the way, and handed out to nobody"
    assert values(index, 5, 9, cursors) == [5, 6, 7, 8]
    assert len(opens) == 2 and cursors.beyond_rows == 305, "who goes back begins again"
    cursors.close()


def test_a_plain_file_is_entered_where_that_is_nearer(
    tmp_path: Path, opens: list[SourceFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "CUT_ROWS", 100)
    index, cursors = index_of(tmp_path, "a.jsonl"), Cursors()
    values(index, 0, 10, cursors)
    assert values(index, 810, 820, cursors) == list(range(810, 820))
    assert len(opens) == 2 and cursors.beyond_rows == 10
    cursors.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", few(4, 40))
def test_any_parts_in_any_order(
    tmp_path: Path, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_lines, "CUT_ROWS", 70)
    draw, index, cursors, at = random.Random(seed), index_of(tmp_path, name), Cursors(), 0
    for _ in range(40):
        start = at if draw.random() < 0.7 else draw.randrange(ROWS)
        at = min(ROWS, start + draw.randrange(60))
        assert values(index, start, at, cursors) == list(range(start, at))
    cursors.close()


def test_damage_that_an_open_cursor_comes_to_is_told_and_not_kept(tmp_path: Path) -> None:
    draw, path, cursors = random.Random(1), tmp_path / "a.jsonl.gz", Cursors()
    texts = [draw.randbytes(300).hex() for _ in range(3000)]  # far more than what is read ahead
    write(path, "".join(f'{{"x": "{text}"}}\n' for text in texts).encode())
    index = RowIndex.build(RowSourceConfig(files=(str(path),)))
    assert read_rows(index, [(0, 2)], LIMIT, cursors)[0].column("x").to_pylist() == texts[:2]
    data, about = path.read_bytes(), os.stat(path)
    half = len(data) // 2
    for content, broken in ((data[:half] + b"\xff" * (len(data) - half), True), (data, False)):
        with path.open("r+b") as file:  # the same file: the cursor has it open
            file.write(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # a disk does not say that it forgot
        table, errors = read_rows(index, [(2990, 2992)], LIMIT, cursors)
        assert table.column("x").to_pylist() == ([None, None] if broken else texts[2990:2992])
        assert len(errors) == (2 if broken else 0) and (not broken or "cannot be read" in errors[0])
    cursors.close()


def test_a_file_that_changes_under_a_cursor_costs_its_rows(tmp_path: Path) -> None:
    index, cursors = index_of(tmp_path, "a.jsonl.gz"), Cursors()
    values(index, 0, 10, cursors)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    assert set(read_rows(index, [(10, 12)], LIMIT, cursors)[1].values()) == {GONE}
    cursors.close()
