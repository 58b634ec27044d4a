"""What a trial lets one expect: allotment, pace, time, size of shards."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pytest

from shoestring.control.pools import PoolsConfig
from shoestring.infer.config import InferConfig, LimitsConfig, ShardsConfig, StageConfig
from shoestring.infer.expect import ALONE, MOST_SHARDS, PER_WORKER, Expected, expect, shard_rows
from shoestring.infer.rehearsal import Rehearsal, StageCost
from shoestring.infer.trial import Trial, columns, placed, table, tell

SCHEMA = pa.schema([("label", pa.int64()), ("score", pa.float32())]).serialize().to_pybytes()


def cost(name: str, row_s: float, cpu_share: float = 1.0, items: float = 1.0) -> StageCost:
    return StageCost(name, 0.5, row_s / items, row_s, items, cpu_share, SCHEMA, 32, 10**8)


def rehearsal(*stages: StageCost, load_s: float = 0.001, load_cpu: float = 0.0) -> Rehearsal:
    return Rehearsal(
        rows=100, stages={one.name: one for one in stages}, load_s=load_s, load_cpu_share=load_cpu,
        write_s=0.0001, write_cpu_share=1.0, row_bytes=1000.0, output_row_bytes=50.0, chunk_rows=64,
        errors={"ValueError at model.py:3": 2}, took_s=1.5,
    )  # fmt: skip


STAGES = {"detect": StageConfig(), "classify": StageConfig()}
JOB = InferConfig(stages=(StageConfig(name="detect"), StageConfig(name="classify")))


def test_the_slowest_part_gets_the_processes() -> None:
    found = expect(
        rehearsal(cost("detect", 0.010), cost("classify", 0.030, items=4.0)),
        STAGES,
        PoolsConfig(),
        10_000,
        8.0,
        1,
    )
    counts = {part.name: part.processes for part in found.parts}
    assert counts["classify"] >= 3 * counts["detect"] - 1 and counts["load"] == counts["write"] == 1
    assert found.rows_per_s <= 8.0 / (0.010 + 0.030 + 0.0001) * 1.001
    assert found.total_s == pytest.approx(0.5 + 10_000 / found.rows_per_s)
    assert found.output_bytes == 500_000
    assert sum(part.share for part in found.parts) == pytest.approx(1.0)
    assert next(part for part in found.parts if part.name == "classify").items_per_row == 4.0


def test_workers_multiply_and_the_slowest_is_named() -> None:
    trial = rehearsal(cost("detect", 0.010), cost("classify", 0.002), load_s=0.08)
    one = expect(trial, STAGES, PoolsConfig(load=1), 10_000, 4.0, 1)
    two = expect(trial, STAGES, PoolsConfig(load=1), 10_000, 4.0, 2)
    assert one.slowest == "load" and "load is the slowest" in one.reason
    assert one.rows_per_s == pytest.approx(12.5) and two.rows_per_s == pytest.approx(25.0)
    assert next(part for part in one.parts if part.name == "load").fixed


def test_gpus_bound_the_processes_that_are_expected() -> None:
    trial = rehearsal(cost("detect", 0.010, cpu_share=0.0), cost("classify", 0.002))
    free = expect(trial, STAGES, PoolsConfig(), 10_000, 4.0, 1)
    bound = expect(trial, STAGES, PoolsConfig(), 10_000, 4.0, 1, {"detect": 2})
    counts = [{part.name: part.processes for part in one.parts} for one in (free, bound)]
    assert counts[0]["detect"] > 2 == counts[1]["detect"]
    assert free.rows_per_s > bound.rows_per_s == pytest.approx(200.0) and bound.slowest == "detect"


def test_what_the_trial_did_not_reach_is_expected_to_cost_nothing() -> None:
    found = expect(rehearsal(cost("detect", 0.01)), STAGES, PoolsConfig(), 100, 2.0, 1)
    part = next(part for part in found.parts if part.name == "classify")
    assert part.row_s == 0.0 and part.processes == 1 and math.isfinite(found.total_s)


def job(rows: int, rows_per_s: float, workers: int = 2) -> Expected:
    return Expected(
        (), workers, 2.0, rows_per_s, "detect", rows, rows / rows_per_s if rows_per_s else 0.0, 0.0
    )


@pytest.mark.parametrize(
    ("rows", "rows_per_s", "expected", "why"),
    [
        (1_000_000, 100.0, 500, "10 s of work"),
        (1_000, 1000.0, 42, f"{PER_WORKER} shards"),
        (3, 1000.0, 1, f"{PER_WORKER} shards"),
        (100_000_000, 10.0, 100_000_000 // MOST_SHARDS, f"{MOST_SHARDS} files"),
        (1_000, 0.0, 42, f"{PER_WORKER} shards"),
    ],
)
def test_shards_take_some_seconds_and_are_neither_few_nor_many(
    rows: int, rows_per_s: float, expected: int, why: str
) -> None:
    found, reason = shard_rows(ShardsConfig(), LimitsConfig(), job(rows, rows_per_s), 1.0, 2**40)
    assert found == expected and why in reason


def test_who_is_alone_gets_larger_shards_for_nobody_waits_for_it() -> None:
    found, reason = shard_rows(ShardsConfig(), LimitsConfig(), job(1_000, 1000.0, workers=1), 1.0, 2**40)
    assert found == 250 and f"{ALONE} shards" in reason


def test_shards_fit_into_memory_and_a_set_size_is_kept() -> None:
    found, reason = shard_rows(ShardsConfig(), LimitsConfig(), job(1_000_000, 1e4), 10e6, 16_000_000_000)
    assert found == 100 and "10 MB of memory" in reason
    assert shard_rows(ShardsConfig(rows=7), LimitsConfig(), job(10, 1.0), 1.0, 1) == (7, "as set")


def test_the_table_names_each_part_with_its_cost() -> None:
    trial = rehearsal(cost("detect", 0.010), cost("classify", 0.002))
    expected = expect(trial, STAGES, PoolsConfig(), 10_000, 2.0, 1)
    lines = table(expected.parts)
    assert [line.split()[0] for line in lines] == ["part", "load", "detect", "classify", "write"]
    assert "10.0 ms" in lines[2] and lines[2].rstrip().endswith("32")
    said: list[str] = []
    tell(Trial(trial, expected, JOB), said.append)
    text = "\n".join(said)
    assert "trial: 100 rows in 1.50 s" in text and "for 10,000 rows" in text
    assert "column detect.score: float" in text
    assert "2 of these rows have an error: ValueError at model.py:3" in text


def test_a_stage_that_did_not_use_its_gpu_is_not_bounded_by_gpus() -> None:
    stages = [replace(cost("detect", 0.01), gpu=True), replace(cost("classify", 0.002), gpu=False)]
    trial = rehearsal(*stages)
    assert [stage.device for stage in placed(JOB, trial).stages] == ["", "cpu"]
    wished = JOB.model_copy(update={"stages": (JOB.stages[0], StageConfig(name="classify", device="cuda"))})
    assert [stage.device for stage in placed(wished, trial).stages] == ["", "cuda"]
    assert placed(JOB, rehearsal(cost("detect", 0.01), cost("classify", 0.002))) == JOB, "nothing is known"
    found = Trial(trial, expect(trial, STAGES, PoolsConfig(), 10_000, 2.0, 1), placed(JOB, trial))
    said: list[str] = []
    tell(found, said.append)
    assert found.facts["off_gpu"] == ["classify"] and "stage classify used no GPU" in "\n".join(said)


def test_facts_of_a_trial_are_plain_and_name_all_columns() -> None:
    trial = rehearsal(cost("detect", 0.010), cost("classify", 0.002))
    facts = Trial(trial, expect(trial, STAGES, PoolsConfig(), 10_000, 2.0, 1), JOB).facts
    assert columns(trial) == facts["columns"] and facts["columns"]["classify.label"] == "int64"
    assert [part["name"] for part in facts["parts"]] == ["load", "detect", "classify", "write"]
    assert facts["slowest"] in ("cores", "detect") and facts["expected_rows_per_s"] > 0
