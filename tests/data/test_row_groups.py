"""Row groups: the same rows in whatever parts they are read, and each group decoded once."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shoestring.data import row_groups
from shoestring.data.row_groups import RowGroups
from shoestring.data.sources import SourceFile, files_of
from tests.seeds import few

NAMES = ["x", "y"]


def written(folder: Path, rows: int = 1000, group: int = 250) -> SourceFile:
    table = pa.table({"x": list(range(rows)), "y": [[at, at + 1] for at in range(rows)], "z": ["-"] * rows})
    how: Any = {"row_group_size": group, "compression": "zstd", "use_dictionary": False}
    pq.write_table(table, folder / "a.parquet", **how)
    (file,) = files_of([str(folder / "a.parquet")])
    return file


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[SourceFile]:
    """Each time that a file is opened."""
    seen: list[SourceFile] = []

    class Counted(row_groups.opened):
        def __init__(self, file: SourceFile) -> None:
            seen.append(file)
            super().__init__(file)

    monkeypatch.setattr(row_groups, "opened", Counted)
    return seen


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
@pytest.mark.parametrize("seed", few(10, 100))
def test_any_parts_in_any_order(
    tmp_path: Path, kept_bytes: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "BATCH_ROWS", 7)
    draw, file, groups = random.Random(seed), written(tmp_path), RowGroups(kept_bytes)
    at = 0
    for _ in range(60):
        at = at if draw.random() < 0.8 else draw.randrange(1000)
        number, low = divmod(at % 1000, 250)
        high = min(250, low + draw.randrange(1, 40))
        table, damage = groups.read(file, number, NAMES, low, high)
        first = number * 250
        assert not damage and table.column_names == NAMES
        assert table["x"].to_pylist() == list(range(first + low, first + high))
        assert table["y"].to_pylist() == [[x, x + 1] for x in range(first + low, first + high)]
        at = first + high + draw.choice((0, 0, 0, 13))
    groups.close()


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_parts_that_follow_each_other_decode_a_group_once(
    tmp_path: Path, kept_bytes: int, opens: list[SourceFile]
) -> None:
    file, groups = written(tmp_path), RowGroups(kept_bytes)
    for at in range(0, 1000, 10):
        if at % 30:  # others read the rest
            groups.read(file, at // 250, NAMES, at % 250, at % 250 + 10)
    assert len(opens) == 4
    assert groups.beyond_rows == pytest.approx(1000 - 660, abs=20), "660 were handed out"
    groups.read(file, 3, NAMES, 0, 5)
    assert len(opens) == (5 if not kept_bytes else 4), "who goes back begins again, where it is not kept"
    groups.read(file, 3, ["x"], 0, 5)
    assert len(opens) == (6 if not kept_bytes else 5), "other columns"


def test_damage_in_a_large_group_is_told_and_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "BATCH_ROWS", 50)
    file = written(tmp_path)
    path = tmp_path / "a.parquet"
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data, about = bytearray(path.read_bytes()), os.stat(path)
    start = chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    groups = RowGroups(0)
    found: list[Any] = [groups.read(file, number, NAMES, 0, 250) for number in range(3)]
    assert [bool(damage) for _, damage in found] == [False, True, False]
    assert "row group 1 is damaged" in found[1][1]
    assert found[1][0]["x"].to_pylist() == [None] * 250
    assert found[2][0]["x"].to_pylist() == list(range(500, 750))
    groups.close()
