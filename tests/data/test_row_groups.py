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
from tests.data.files import count_opens
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
    return count_opens(monkeypatch, row_groups)


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
    each = 1 if kept_bytes else 2  # a large one is looked at first
    assert len(opens) == 4 * each
    assert groups.beyond_rows == pytest.approx(1000 - 660, abs=20), "660 were handed out"
    groups.read(file, 3, NAMES, 0, 5)
    assert len(opens) == (4 if kept_bytes else 10), "who goes back begins again, where it is not kept"
    groups.read(file, 3, ["x"], 0, 5)
    assert len(opens) == (5 if kept_bytes else 12), "other columns"


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20])
def test_rows_of_a_damaged_group_are_the_same_in_whatever_parts_they_are_read(
    tmp_path: Path, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups, "BATCH_ROWS", 50)
    table = pa.table({"x": list(range(3000)), "y": [str(at) for at in range(3000)]})
    path = tmp_path / "a.parquet"
    how: Any = {
        "use_dictionary": False,
        "data_page_size": 100,
        "write_batch_size": 100,
        "compression": "zstd",
    }
    pq.write_table(table, path, row_group_size=1000, **how)
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data, about = bytearray(path.read_bytes()), os.stat(path)
    start = chunk.data_page_offset + chunk.total_compressed_size // 2  # half of its pages are whole
    data[start : start + 400] = b"\xff" * 400
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    (file,) = files_of([str(path)])
    told: list[dict[int, str]] = []
    for step in (1000, 130, 37):
        groups, found = RowGroups(kept_bytes), {}
        for number in range(3):
            for low in range(0, 1000, step):
                high = min(1000, low + step)
                part, damage = groups.read(file, number, NAMES, low, high)
                assert part["y"].to_pylist() == [str(1000 * number + at) for at in range(low, high)]
                for place, value in enumerate(part["x"].to_pylist()):
                    row = 1000 * number + low + place
                    assert (value is None) == (place in damage) and value in (None, row)
                found |= {1000 * number + low + place: text for place, text in damage.items()}
        groups.close()
        told.append(found)
    assert told[0] == told[1] == told[2] and "row group 1 is damaged" in next(iter(told[0].values()))
    assert min(told[0]) > 1000 and max(told[0]) == 1999, "what stands before the damage is there"


def test_a_moment_without_the_file_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, groups, failures = written(tmp_path), RowGroups(0), [2]

    class Flaky(row_groups.opened):
        def __enter__(self) -> Any:
            failures[0] -= 1
            if failures[0] == 1:
                raise OSError("connection reset")
            return super().__enter__()

    monkeypatch.setattr(row_groups, "opened", Flaky)
    table, damage = groups.read(file, 0, NAMES, 0, 10)
    assert not damage and table["x"].to_pylist() == list(range(10))
    groups.close()


def test_rows_without_columns_are_counted(tmp_path: Path) -> None:
    table, damage = RowGroups().read(written(tmp_path), 0, [], 5, 25)
    assert table.num_rows == 20 and not damage


def test_want_of_memory_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise pa.lib.ArrowMemoryError("malloc of size 1 failed")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", none)
    with pytest.raises(MemoryError):
        RowGroups().read(written(tmp_path), 0, NAMES, 5, 25)
