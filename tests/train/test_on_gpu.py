"""Training on a real GPU: the same numbers as on the CPU, nothing lost under kills, real lack of memory."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.record import read_events
from shoestring.fleet.config import CheckpointConfig
from shoestring.fleet.launch import Launch
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from tests.commands.journeys import shoestring, tiny_sets, write_texts
from tests.needs_gpu import needs_gpu
from tests.train.fleets import final_state, make_launch, run
from tests.train.test_counting_under_kills import ChaosHost, run_under

pytestmark = needs_gpu


class CalmHost(ChaosHost):
    """Kills less often: a process needs seconds until it has a GPU."""

    choices = ("worker", "coordinator")
    gap_s = (2.0, 8.0)
    kills = 4


def on_gpu(folder: Path, task: str, settings: dict[str, Any], **more: Any) -> Launch:
    """A launch of `tests.train.tasks:task` whose workers have the GPU."""
    strategy = more.pop("strategy", "NNN")
    micro_batch = more.pop("micro_batch", 16)
    train = TrainConfig(
        clip_norm=0.0, micro_batch=micro_batch, schedule=ScheduleConfig(kind="constant", warmup=0.0),
        sharding=ShardingConfig(strategy=strategy),
    )  # fmt: skip
    launch = make_launch(
        folder, task, settings, settings["samples"], train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20),
        members={"same_failures": 1000, "backoff_s": 0.02, "backoff_max_s": 0.05}, **more,
    )  # fmt: skip
    return dataclasses.replace(launch, device="cuda")


def check_ones(launch: Launch, task: str, settings: dict[str, Any]) -> None:
    """Each sample has counted once."""
    state, _ = final_state(launch, task, settings)
    assert set(next(state.model.parameters()).detach().tolist()) == {1.0}


COUNTED = {"samples": 3000}


@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_all_ones_after_kills(tmp_path: Path, strategy: str) -> None:
    launch = on_gpu(tmp_path, "counting", COUNTED, batch=10, strategy=strategy)
    run_under(launch, 3, CalmHost)
    check_ones(launch, "counting", COUNTED)


def test_two_workers_share_a_gpu(tmp_path: Path) -> None:
    launch = on_gpu(tmp_path, "counting", COUNTED, batch=10, workers=2)
    run_under(launch, 5, CalmHost)
    check_ones(launch, "counting", COUNTED)
    steps = read_events(tmp_path / "events.jsonl").of("step")
    assert any(len(step["workers"]) == 2 for step in steps), "they never worked together"


def test_all_ones_with_servers_on_the_gpu_of_the_workers(tmp_path: Path) -> None:
    launch = on_gpu(tmp_path, "counting", COUNTED, batch=10, workers=2, servers=1)
    assert run(launch).status == "finished"
    check_ones(launch, "counting", COUNTED)


def test_a_pass_that_finds_no_memory_on_the_gpu_is_halved(tmp_path: Path) -> None:
    settings = {"samples": 400, "sample_bytes": 1 << 30, "room_bytes": 6 << 30}
    launch = on_gpu(tmp_path, "hungry", settings, batch=40, workers=2)  # in processes of their own
    assert run(launch).status == "finished"
    check_ones(launch, "hungry", settings)
    log = read_events(tmp_path / "events.jsonl")
    learnt = [event["micro_batch"] for event in log.of("decision") if event["action"] == "limit_pass"]
    assert learnt and set(learnt) <= {4, 5, 6, 7, 8} and not log.of("fault")


def test_a_run_learns_what_it_learns_on_the_cpu(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data")
    losses = {}
    for device in ("cuda", "cpu"):
        sets = tiny_sets(data, tmp_path / f"cache-{device}", fleet__pace__steps=20)
        sets += ["--set", "fleet.members.workers=1"]
        environment = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
        kept = dict(os.environ)
        os.environ.update(environment)
        try:
            done = shoestring(
                "run", "demo", "--name", device, "--runs-dir", str(tmp_path / "runs"), "--json", *sets
            )
        finally:
            os.environ.clear()
            os.environ.update(kept)
        assert done.returncode == 0, done.stderr + done.stdout
        assert json.loads(done.stdout)["status"] == "finished"
        events = read_events(tmp_path / "runs" / device / "events.jsonl")
        losses[device] = [event["metrics"]["loss"] for event in events.of("step")]
    assert len(losses["cuda"]) == 20
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-3)
    generated = shoestring(
        "generate",
        "cuda",
        "--prompt",
        "def ",
        "--tokens",
        "8",
        "--json",
        "--runs-dir",
        str(tmp_path / "runs"),
    )
    assert generated.returncode == 0, generated.stderr
    assert json.loads(generated.stdout)["text"].startswith("def ")


def test_a_run_of_two_workers_on_one_gpu_is_as_one_of_one(tmp_path: Path) -> None:
    data = write_texts(tmp_path / "data")
    sets = tiny_sets(data, tmp_path / "cache", fleet__pace__steps=30, fleet__drill__kill="w1")
    done = shoestring("run", "demo", "--name", "it", "--runs-dir", str(tmp_path / "runs"), "--json", *sets)
    assert done.returncode == 0, done.stderr + done.stdout
    record = read_events(tmp_path / "runs" / "it" / "events.jsonl")
    assert sorted({event["step"] for event in record.of("step")}) == list(range(1, 31))
    assert any(len(step["workers"]) == 2 for step in record.of("step"))
    assert any("SIGKILL" in event["reason"] for event in record.of("fault"))


def test_the_machine_is_probed(tmp_path: Path) -> None:
    done = shoestring("probe", "--json", "--output", str(tmp_path / "cluster.toml"))
    assert done.returncode == 0, done.stderr + done.stdout
    assert 'kind = "cuda"' in (tmp_path / "cluster.toml").read_text()
