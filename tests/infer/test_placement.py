"""What of the machine a worker's processes get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.base.config import load_config
from shoestring.base.errors import ConfigError, DataError
from shoestring.cluster.topology import usable_memory_bytes
from shoestring.data.row_index import RowIndex, RowSourceConfig
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.graph import Graph
from shoestring.infer.layout import Setting, most_of, plans_of
from shoestring.infer.placement import budget_for, devices_of, index_at, outfits, workers_here
from shoestring.infer.pressure import LEAST_CHUNK_BYTES, process_bytes
from shoestring.infer.shared import Segments


def job(*sets: str, **stage: Any) -> InferConfig:
    return load_config(InferConfig(stages=(StageConfig(uses="m:Model", **stage),)), (), sets)


@pytest.mark.parametrize(
    ("number", "workers", "here", "expected"),
    [
        (0, 1, 2, ("cuda:0", "cuda:1")),
        (1, 2, 3, ("cuda:1",)),
        (0, 2, 3, ("cuda:0", "cuda:2")),
        (3, 4, 2, ("cuda:1",)),
        (5, 2, 2, ("cuda:1",)),
        (0, 1, 0, ()),
    ],
)
def test_workers_share_the_gpus(number: int, workers: int, here: int, expected: tuple[str, ...]) -> None:
    assert devices_of(job(), number, workers, here) == expected


def test_no_gpu_is_taken_where_none_is_wanted_and_one_that_is_missing_is_told() -> None:
    assert devices_of(job(device="cpu"), 0, 1, 4) == ()
    with pytest.raises(ConfigError, match="wants a GPU"):
        devices_of(job(device="cuda"), 0, 1, 0)
    with pytest.raises(ValueError, match="device"):
        job(device="gpu")


@pytest.mark.parametrize(("share", "most"), [(0.5, 4), (0.3, 6), (1.0, 2)])
def test_a_share_of_a_gpu_bounds_how_many_there_are(share: float, most: int) -> None:
    config = job(device_share=share)
    setting = Setting("w", 8.0, ("cuda:0", "cuda:1"), processes={"model": 9})
    plan = next(one for one in plans_of(config, Graph.of(config, None), setting) if one.name == "model")
    assert plan.processes == most == most_of(config.stages[0], setting.devices)
    on_cpus = plans_of(config, Graph.of(config, None), Setting("w", 8.0, processes={"model": 9}))
    assert next(one.processes for one in on_cpus if one.name == "model") == 9
    assert most_of(config.stages[0], ()) == 0


@pytest.mark.parametrize(
    ("shares", "fixed", "counts"),
    [
        ((0.5, 0.5), 0, (3, 1)),
        ((1.0, 1.0), 0, (1, 1)),
        ((0.25, 0.5), 0, (6, 1)),
        ((0.5, 0.5), 3, (1, 3)),
        ((0.5, 0.5), 9, (1, 9)),
    ],
)
def test_stages_begin_with_what_fits_beside_each_other(
    shares: tuple[float, float], fixed: int, counts: tuple[int, int]
) -> None:
    stages = (
        StageConfig(name="a", uses="m:A", device_share=shares[0]),
        StageConfig(name="b", uses="m:B", device_share=shares[1], processes=fixed),
    )
    config = InferConfig(stages=stages)
    setting = Setting("w", 8.0, ("cuda:0", "cuda:1"), processes={"a": 9, "b": 9})
    plans = {one.name: one.processes for one in plans_of(config, Graph.of(config, None), setting)}
    assert (plans["a"], plans["b"]) == counts


@pytest.mark.parametrize(("fixed", "threads"), [(0, 1), (2, 4), (3, 2), (9, 1)])
def test_threads_are_what_fixed_processes_leave_each(fixed: int, threads: int) -> None:
    config = job(processes=fixed)
    assert outfits(Graph.of(config, None), 8.0)["model"].threads == threads


def test_workers_of_one_machine_divide_its_memory_and_a_set_bound_is_of_each(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    most = budget_for(job("limits.segment_bytes=1000000000000000"), segments).limit_bytes
    for workers, transport in ((1, "local"), (4, "local"), (4, "ray")):
        sets = (f"fleet.members.workers={workers}", f"fleet.transport={transport}")
        own = usable_memory_bytes() // (1 if transport == "ray" else workers)
        # What is free may change a little between two looks.
        assert budget_for(job(*sets), segments).limit_bytes == pytest.approx(min(own // 4, most), rel=0.05)
        found = budget_for(job(*sets), segments)
        together = found.limit_bytes + found.processes_bytes
        assert together == pytest.approx(own, rel=0.05), "of rows and of processes"
        small = budget_for(job(*sets, f"limits.segment_bytes={2 * LEAST_CHUNK_BYTES}"), segments)
        assert small.limit_bytes == 2 * LEAST_CHUNK_BYTES


@pytest.mark.parametrize(
    ("workers", "most", "transport", "expected"),
    [(2, 0, "local", 2), (1, 4, "local", 4), (4, 2, "auto", 4), (0, 0, "local", 1), (2, 8, "ray", 1)],
)
def test_workers_that_may_still_come_share_the_machine_too(
    workers: int, most: int, transport: str, expected: int
) -> None:
    members = (f"fleet.members.workers={workers}", f"fleet.members.max_workers={most}")
    assert workers_here(job(*members, f"fleet.transport={transport}")) == expected


def test_a_process_may_hold_what_the_other_pools_leave_it() -> None:
    assert process_bytes(1000, 400, 3) == 200 and process_bytes(1000, 400, 0) == 600
    assert process_bytes(1000, 2000, 2) == 1, "there is a bound, and it is passed already"
    assert process_bytes(0, 400, 3) == 0, "nobody knows"


def test_a_host_that_does_not_see_the_runs_directory_is_told_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("x\n1\n2\n")
    kept = tmp_path / "rows.index"
    with pytest.raises(ConfigError, match="is not there on host") as caught:
        index_at(kept)
    assert "--runs-dir" in caught.value.todo and "share" in caught.value.todo
    RowIndex.build(RowSourceConfig(files=(str(tmp_path / "x.csv"),))).save(kept)
    assert index_at(kept).rows == 2
    kept.write_bytes(b"?")
    with pytest.raises(DataError, match="is damaged"):
        index_at(kept)
