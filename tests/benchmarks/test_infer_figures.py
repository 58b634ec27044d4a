"""Figures and checks of the batch inference benchmark: what they make of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.infer import data, even, faults, ours, pipeline, rows, samples
from benchmarks.infer.check import Same, compare, ids_of
from benchmarks.infer.diary import Call, Diary, calls, row_s
from benchmarks.network.arms import PartError


def test_ids_that_are_missing_doubled_or_foreign_are_counted() -> None:
    found = compare(np.array([0, 1, 1, 1, 3, 9, -1]), 4)
    assert (found.missing, found.duplicate, found.foreign, found.rows) == (1, 2, 2, 7)
    assert not found.whole
    assert compare(np.array([2, 0, 1]), 3).whole


def test_errors_are_counted_and_hidden_folders_are_not_read(tmp_path: Path) -> None:
    (tmp_path / ".staging").mkdir()
    pq.write_table(pa.table({"id": [0, 1], "error": pa.array(["x", None])}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [0, 1], "error": ["x", "y"]}), tmp_path / ".staging" / "b.parquet")
    found = ids_of(tmp_path, 2)
    assert (found.rows, found.errors, found.missing, found.duplicate) == (2, 1, 0, 0)


def test_other_values_are_no_equal_work(tmp_path: Path) -> None:
    same, path = Same(2, "value"), tmp_path / "a.parquet"
    for table in ({"id": [1, 0], "value": [2.0, 1.0]}, {"id": [0, 1], "value": [1.0, 2.0 + 1e-6]}):
        pq.write_table(pa.table(table), path)
        same.check(tmp_path)
    pq.write_table(pa.table({"id": [0, 1], "value": [1.0, 2.5]}), path)
    with pytest.raises(PartError, match=r"id 1 .* has 2.5, not 2.0"):
        same.check(tmp_path)
    pq.write_table(pa.table({"id": [0, 0], "value": [1.0, 1.0]}), path)
    with pytest.raises(PartError, match="missing=1"):
        same.check(tmp_path)


def test_a_torn_file_of_output_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(PartError):
        ids_of(tmp_path, 2)


def test_a_diary_is_read_back_and_half_a_line_is_not(tmp_path: Path) -> None:
    diary = Diary(str(tmp_path / "diary"), "stage")
    diary.begin()
    diary.end(2, [5, 7])
    diary.begin()
    diary.end(3)
    with (tmp_path / "diary").open("a") as file:
        file.write("12 stage 1.0")
    noted = calls(tmp_path / "diary")
    assert [(call.stage, call.items, call.ids) for call in noted] == [("stage", 2, (5, 7)), ("stage", 3, ())]
    assert row_s(noted, "stage") == pytest.approx(sum(call.took_s for call in noted) / 5)


def test_rows_done_before_all_stages_were_up_are_no_gain() -> None:
    noted = [
        Call(1, stage, at_s, 1.0, 1.0, 10, ())
        for stage, at_s in (("a", 0.0), ("a", 1.0), ("b", 5.0), ("a", 5.0), ("a", 6.0), ("b", 6.0))
    ]
    assert ours.begin(noted) == (5.0, 0.5)


def test_ratios_are_of_the_same_round() -> None:
    runs = [
        {"arm": arm, "round": number, "work_s": took}
        for arm, times in {"a": (4.0, 6.0, 9.0), "b": (2.0, 2.0)}.items()
        for number, took in enumerate(times)
    ]
    assert samples.ratio(runs, "a", "b") == 2.5
    assert samples.spread(runs, "a") == [6.0, 4.0, 9.0]
    assert samples.best(runs, ["a", "b"]) == "b"
    assert samples.ratio(runs, "a", "c") is None


def test_costs_are_seeded_of_mean_one_and_alike_without_skew() -> None:
    assert (data.costs(100, 4, 0.0, 1) == 1.0).all()
    skewed = data.costs(1000, 10, 4.0, 1)
    assert skewed.mean() == pytest.approx(1.0)
    assert (skewed == data.costs(1000, 10, 4.0, 1)).all()
    assert skewed.std() > 3 * data.costs(1000, 10, 1.0, 1).std()


def test_the_part_of_the_bound_is_by_the_slowest_stage() -> None:
    times = {"fetch_s": 0.002, "predict_s": 0.001, "put_s": 0.001}
    runs = [
        {"arm": "loop", "round": 0, "work_s": 4.4, "took_s": 5.0, **times},
        {"arm": "ours, one of each", "round": 0, "work_s": 2.5, "took_s": 5.0, **times},
        {"arm": "ours", "round": 0, "work_s": 1.1, "took_s": 5.0, **times},
    ]
    found = pipeline.figures(runs, 1000)
    assert found["pipeline_vs_naive"] == 4.0
    assert found["pipeline_bound"] == 2.0
    assert found["pipeline_of_bound"] == 0.8


def test_when_a_controlled_job_came_near_the_best() -> None:
    timeline = [[0.0, 0.0], [1.0, 20.0], [2.0, 115.0], [3.0, 215.0]]
    assert pipeline.settled(timeline, 100.0) == {"near_s": 1.0, "late_rows_per_s": 97.5}
    assert pipeline.settled(timeline, 1000.0) == {"near_s": None, "late_rows_per_s": None}


def test_kills_are_seeded_and_reach_everybody() -> None:
    kills = [faults.Kill.draw(number) for number in range(18)]
    assert kills == [faults.Kill.draw(number) for number in range(18)]
    assert {kill.whom for kill in kills} == set(faults.WHOM)


def test_only_kills_that_met_somebody_count() -> None:
    run = {"missing": 1, "duplicate": 2, "foreign": 1, "errors": 0, "redone": 60, "whom": "all"}
    found = faults.figures([{**run, "hit": True}, {**run, "hit": False}, {"whom": "all", "failed": True}])
    assert (found["fault_runs"], found["missing_ids"], found["duplicate_ids"]) == (1, 1, 3)
    assert found["fault_runs_failed"] == 1
    assert found["redone_share"] == 0.1


def test_memory_that_grows_is_seen() -> None:
    assert rows.growth([1.0, 1.0, 5.0, 5.0, 5.0, 5.0]) == 1.0
    assert rows.growth([1.0, 1.0, 5.0, 5.0, 10.0, 10.0]) == 2.0


def test_the_ledger_is_held_against_the_even_split_by_skew() -> None:
    runs = [
        {"arm": "skew 3, even", "round": 0, "work_s": 3.0},
        {"arm": "skew 3, ledger", "round": 0, "work_s": 2.0},
    ]
    assert even.figures(runs) == {"ledger_vs_even_3": 1.5, "ledger_vs_even": 1.5}
