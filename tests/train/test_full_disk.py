"""A disk that fills up while checkpointing: said, survived, resumed; nothing is lost or counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shoestring.base.record import read_events
from shoestring.fleet.config import CheckpointConfig
from shoestring.train.config import TrainConfig
from shoestring.train.schedules import ScheduleConfig
from tests.disks import resize, small_disk
from tests.train.fleets import final_state, make_launch, run

SAMPLES = 40_000  # a checkpoint of the counting model holds one float32 each: 160 kB


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB where the run keeps its checkpoints."""
    with small_disk(tmp_path / "checkpoints", "256k") as disk:
        yield disk


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_costs_a_checkpoint_and_no_sample(tmp_path: Path, full_soon: Path, workers: int) -> None:
    settings = {"samples": SAMPLES}
    launch = make_launch(
        tmp_path, "counting", settings, SAMPLES, workers=workers, batch=2000,
        train=TrainConfig(
            clip_norm=0.0, micro_batch=2000, schedule=ScheduleConfig(kind="constant", warmup=0.0)
        ),
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=5, keep=1),
    )  # fmt: skip
    outcome = run(launch)
    assert outcome.status == "failed" and "checkpoint" in outcome.error and "free some space" in outcome.todo
    events = read_events(tmp_path / "events.jsonl")
    failed = [event for event in events.of("fault") if "checkpoint failed" in event["reason"]]
    assert failed and "No space left" in failed[0]["reason"]
    assert len(events.of("step")) == 20, "the run went on after the checkpoint that failed"
    assert [path.name for path in full_soon.iterdir()] == ["step-00000005"], "the one before is still whole"

    resize(full_soon, "4m")
    assert run(launch).status == "finished"
    state, _ = final_state(launch, "counting", settings)
    assert torch.equal(next(state.model.parameters()).detach(), torch.ones(SAMPLES))
