"""The trial before a job: what it finds, and what it refuses."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.clock import SystemClock
from shoestring.base.errors import InferError
from shoestring.data.ranges import size
from shoestring.data.row_index import RowIndex
from shoestring.infer.rehearsal import Rehearsal
from shoestring.infer.rehearse import MOST_ITEMS, chunk_rows, first_batch, rehearse, spread
from tests.infer.real_job import job


def trial(folder: Path, rows: int, stages: list[dict[str, Any]], tried: int = 60) -> Rehearsal:
    config = job(folder, rows, stages)
    return rehearse(config, RowIndex.build(config.source), tried, SystemClock())


@given(st.integers(1, 500), st.integers(1, 200), st.integers(1, 30))
def test_rows_are_from_all_over(rows: int, wanted: int, runs: int) -> None:
    ranges = spread(rows, wanted, runs)
    assert size(ranges) == min(rows, wanted)
    assert ranges[0][0] == 0 and ranges[-1][1] <= rows
    assert all(before[1] < after[0] for before, after in pairwise(ranges))
    if runs > 1 and wanted > 1:
        assert ranges[-1][1] == rows


def test_batches_and_chunks_begin_with_what_takes_a_moment() -> None:
    assert first_batch(0.001, 32) == 64 and first_batch(10.0, 32) == 32 and first_batch(0.0, 1) == MOST_ITEMS
    assert chunk_rows(100.0, 1e-6, 1e-6) == 1 << 16
    assert chunk_rows(1 << 20, 1e-6, 1e-6) == 8 and chunk_rows(100.0, 0.01, 0.0) == 50
    assert chunk_rows(100.0, 1e-6, 1.0) == 16 and chunk_rows(1e9, 10.0, 1.0) == 1


def test_it_finds_types_costs_and_sizes_and_leaves_nothing(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    stages = [
        {"uses": "Detect", "name": "detect"},
        {"uses": "Classify", "name": "classify", "batch": 16},
        {"uses": "Slow", "name": "slow", "after": "rows"},
    ]
    found = trial(tmp_path, 3000, stages)
    assert found.rows == 60 and not found.errors and found.took_s > 0
    detect, classify, slow = (found.stages[name] for name in ("detect", "classify", "slow"))
    assert found.batches["classify"] == 16
    assert detect.items_per_row == 1.0 and 0.8 < classify.items_per_row < 1.2
    assert 0.002 <= slow.row_s < 0.02 and slow.cpu_share < 0.8 < detect.cpu_share
    assert slow.item_s > 3 * detect.item_s
    assert found.load_s > 0 and found.write_s > 0 and found.row_bytes > 16 and found.output_row_bytes > 0
    assert pa.ipc.read_schema(pa.py_buffer(found.schemas["detect"])).names == ["part"]
    assert pa.ipc.read_schema(pa.py_buffer(found.schemas["classify"])).field("label").type == pa.int64()
    assert not (tmp_path / "out").exists()
    assert {name for name in set(os.listdir("/dev/shm")) - before if f"-{os.getpid()}-" in name} == set()


def test_one_process_of_each_part_works_with_the_threads_of_the_job(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    options = {"below": 10, "marks": str(marks)}
    config = job(
        tmp_path, 70_000, [{"uses": "Seldom", "options": options, "processes": 2}, {"uses": "Classify"}]
    )
    found = rehearse(config, RowIndex.build(config.source), 60, SystemClock(), cores=8.0)
    assert [one.name.partition("-")[2] for one in marks.iterdir()] == ["4"]
    # The timed rows are from the middle, where nothing comes out.
    assert found.stages["classify"].item_s > 0 and 0 < found.stages["classify"].items_per_row < 0.2


def test_errors_of_rows_are_told(tmp_path: Path) -> None:
    stages = [{"uses": "Poison", "options": {"at": [0, 1, 299], "what": "raise"}}]
    found = trial(tmp_path, 300, stages, tried=40)
    assert found.errors == {"poison: ValueError: not this one": 3}


@pytest.mark.parametrize(("uses", "words"), [("Bug", "no such column"), ("BadSetup", "no such model")])
def test_a_bug_is_told_with_its_traceback(tmp_path: Path, uses: str, words: str) -> None:
    with pytest.raises(InferError) as caught:
        trial(tmp_path, 300, [{"uses": uses}])
    assert words in caught.value.what and "made.py" in caught.value.what and caught.value.exit_code == 10


def test_a_stage_that_nothing_comes_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(InferError, match="nothing that stage classify could answer"):
        trial(tmp_path, 300, [{"uses": "Nothing"}, {"uses": "Classify"}])
