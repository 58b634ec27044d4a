"""Figures and checks of the batch inference benchmark: what they make of samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.common import other_machine
from benchmarks.infer import __main__ as main
from benchmarks.infer import data, even, faults, ours, peers, pipeline, ray_faults, rows, samples
from benchmarks.infer.check import Same, compare, ids_of, wrong_values
from benchmarks.infer.diary import Call, Diary, calls, row_s
from benchmarks.infer.stages import LEAK_BYTES, Wait
from benchmarks.network.arms import PartError
from shoestring.infer.telling import memory_bytes


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


def test_the_first_arm_too_is_held_to_values_that_are_known(tmp_path: Path) -> None:
    same = Same(2, "value", lambda ids: ids * 2.0)
    pq.write_table(pa.table({"id": [0, 1], "value": [0.0, 2.0]}), tmp_path / "a.parquet")
    same.check(tmp_path)
    pq.write_table(pa.table({"id": [0, 1], "value": [0.0, 3.0]}), tmp_path / "a.parquet")
    with pytest.raises(PartError, match=r"has 3.0, not 2.0"):
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


def test_kills_are_seeded_and_reach_everybody_with_one_worker_and_with_two() -> None:
    count = 2 * len(faults.WHOM)
    kills = [faults.Kill.draw(number) for number in range(count)]
    assert kills == [faults.Kill.draw(number) for number in range(count)]
    assert {(kill.whom, kill.workers) for kill in kills} == {(who, n) for who in faults.WHOM for n in (1, 2)}
    assert faults.FULL % count == 0


RUN = {
    "missing": 0, "duplicate": 0, "foreign": 0, "errors": 0, "redone": 60, "whom": "all", "hit": True,
    "workers": 2, "wrong": 0,
}  # fmt: skip
"""Of a kill, as it should be."""


def test_what_is_wrong_counts_in_every_run_and_what_is_done_again_where_somebody_was_killed() -> None:
    run = {**RUN, "missing": 1, "duplicate": 2, "foreign": 1, "wrong": 4}
    found = faults.figures([run, {**run, "hit": False}, {"whom": "all", "failed": True}])
    assert (found["fault_runs"], found["missing_ids"], found["duplicate_ids"]) == (1, 2, 6)
    assert (found["wrong_values"], found["fault_runs_failed"], found["fault_runs_two_workers"]) == (8, 1, 1)
    assert found["redone_share"] == 0.1
    assert ray_faults.figures([run, {"whom": "all", "failed": True}])["ray_fault_runs_failed"] == 1


def test_runs_recorded_before_values_were_checked_are_read() -> None:
    old = {key: value for key, value in RUN.items() if key not in ("wrong", "workers")}
    found = faults.figures([old])
    assert (found["fault_runs"], found["fault_runs_two_workers"]) == (1, 0)
    assert "wrong_values" not in found


@pytest.mark.parametrize("bad", ["missing", "duplicate", "foreign", "errors", "wrong"])
def test_one_bad_row_is_no_good_end(bad: str) -> None:
    assert not faults.broken([RUN])
    assert faults.broken([RUN, {**RUN, bad: 1}])


def test_fault_runs_that_fail_are_told_and_the_benchmark_does_not_end_well() -> None:
    failed = [{"whom": "all", "failed": True}]
    assert faults.figures(failed)["fault_runs_failed"] == 1, "all of them have failed"
    samples = {"faults": {"runs": [RUN, *failed]}, "uniform": {"runs": []}}
    assert main.wrong(samples, ["faults", "uniform"], []) == "faults (fault_runs_failed: 1)"
    assert main.wrong(samples, ["uniform"], ["even"]) == "even", "faults were not measured now"
    assert not main.wrong({"faults": {"runs": [RUN]}}, ["faults"], [])


def test_values_are_held_to_what_the_stage_computes(tmp_path: Path) -> None:
    part = pa.table({"id": [3, 1, 2], "value": [6.0, 2.0, None], "error": [None, None, "its row"]})
    pq.write_table(part, tmp_path / "a.parquet")
    assert wrong_values(tmp_path, Wait.value) == 0
    part = pa.table({"id": [4, 5, 6, 7], "value": [8.0, 10.5, None, 12.0], "error": pa.nulls(4, pa.string())})
    pq.write_table(part, tmp_path / "b.parquet")
    assert wrong_values(tmp_path, Wait.value) == 3


def test_one_process_leaks_once_and_the_values_are_those_that_are_checked(tmp_path: Path) -> None:
    order = tmp_path / "leak"
    stages = [Wait(row_s=0.0, leak=str(order)) for _ in range(2)]
    for stage in stages:
        stage.setup(None)
    order.touch()
    held = []
    for stage in (*stages, *stages):
        before = memory_bytes()
        found = stage({"id": np.array([1, 2])})["value"]
        assert (found == Wait.value(np.array([1, 2]))).all()
        held.append(memory_bytes() - before > 0.9 * LEAK_BYTES)
    assert held == [True, False, False, False]


def test_every_kind_of_ours_is_mapped_to_one_of_ray_data_or_is_named_as_not_tried() -> None:
    mapped = [kind for kinds in ray_faults.AS_OURS.values() for kind in kinds]
    assert set(ray_faults.AS_OURS) == set(ray_faults.WHOM)
    assert len(mapped) == len(set(mapped))
    assert set(faults.WHOM) - set(mapped) == {"hang", "leak"}


def test_the_best_peer_is_the_one_that_ours_beats_least() -> None:
    runs = [
        {"arm": arm, "round": 0, "work_s": work_s, "took_s": 1.0}
        for arm, work_s in (("ours", 2.0), ("ray", 4.0), ("pool", 3.0))
    ]
    assert peers.figures("uniform", runs)["vs_best_uniform"] == 1.5
    assert "vs_best_uniform" not in peers.figures("uniform", runs[:2]), "the pool may be better"


def test_a_quick_run_tries_what_a_full_one_has_found_best() -> None:
    slowest, last = peers.RAY_TRIES[-1], peers.RAY_TRIES[-2]
    full = {
        "uniform": {"tried": {"ray": {"best": slowest}}}, "skewed": {"tried": {"ray": {"best": last}}},
        "faults": {},
    }  # fmt: skip
    assert peers.chosen("skewed", full)["ray"] == [last, slowest, peers.RAY_TRIES[0]]
    assert peers.chosen("uniform", full)["ray"][0] == slowest
    assert peers.chosen("uniform", {})["ray"] == list(peers.RAY_TRIES[: peers.QUICK_TRIES])
    gone = {"uniform": {"tried": {"ray": {"best": {"batch": 1}}}}}
    assert peers.chosen("uniform", gone)["ray"][0] == peers.RAY_TRIES[0], "a setting that is tried no more"
    assert peers.chosen("uniform", None)["ray"] == list(peers.RAY_TRIES)


def test_parts_of_another_machine_are_named() -> None:
    here = {"cpu": "A", "cores": 2, "memory_bytes": 8 << 30, "load": [0.0], "python": "3.12"}
    same = {**here, "memory_bytes": (8 << 30) - 1, "load": [9.0], "python": "3.13"}
    assert other_machine(same, here) == ""
    assert other_machine({**here, "memory_bytes": 4 << 30}, here) == "memory 4 GiB, here 8 GiB"
    samples = {
        "uniform": {"machine": {**here, "cpu": "B"}, "taken": "now"}, "even": {"taken": "once"},
        "rows": {"machine": same}, "faults": {"machine": here, "earlier": [{"taken": "before"}]},
    }  # fmt: skip
    assert main.elsewhere(samples, here) == {
        "uniform": "now: cpu B, here A", "even": "once: not recorded", "faults": "before: not recorded"
    }  # fmt: skip


def test_rounds_that_are_added_keep_when_and_where_the_others_were_measured() -> None:
    def taken(when: str, cpu: str) -> dict[str, Any]:
        return {"rows": 1, "runs": [when], "failed": {}, "taken": when, "machine": {"cpu": cpu}}

    both = main.joined(main.joined(taken("a", "A"), taken("b", "B")), taken("c", "C"))
    assert both["runs"] == ["a", "b", "c"]
    assert both["earlier"] == [
        {"taken": "a", "machine": {"cpu": "A"}}, {"taken": "b", "machine": {"cpu": "B"}}
    ]  # fmt: skip
    assert both["machine"] == {"cpu": "C"}


def test_memory_that_grows_is_seen() -> None:
    assert rows.growth([1.0, 1.0, 5.0, 5.0, 5.0, 5.0]) == 1.0
    assert rows.growth([1.0, 1.0, 5.0, 5.0, 10.0, 10.0]) == 2.0


def test_the_ledger_is_held_against_the_even_split_by_skew() -> None:
    runs = [
        {"arm": "skew 3, even", "round": 0, "work_s": 3.0},
        {"arm": "skew 3, ledger", "round": 0, "work_s": 2.0},
    ]
    assert even.figures(runs) == {"ledger_vs_even_3": 1.5, "ledger_vs_even": 1.5}
