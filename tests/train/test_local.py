"""Local steps in real processes: equal where they must be, exact where workers die, quick where they lag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from shoestring.base.errors import ConfigError
from shoestring.base.record import Events, read_events
from shoestring.control.controller import ControlConfig
from shoestring.control.splits import split
from shoestring.fleet.config import CheckpointConfig, FleetConfig, PaceConfig
from shoestring.fleet.launch import Launch
from shoestring.train.config import EditConfig, ParallelConfig, TrainConfig
from shoestring.train.runs import JobConfig
from shoestring.train.schedules import ScheduleConfig
from tests.train.fleets import final_state, make_launch, run
from tests.train.test_counting_under_kills import run_under

STEADY = ScheduleConfig(kind="constant", warmup=0.0)
PLAIN_MEAN = EditConfig(outer_lr=1.0, outer_momentum=0.0, temperature=0.0, clip_norm=0.0, warmup=10_000)


def counting(root: Path, samples: int, workers: int, edit: EditConfig = PLAIN_MEAN, **more: Any) -> Launch:
    train = TrainConfig(clip_norm=0.0, micro_batch=4, schedule=STEADY, sync="edit", edit=edit)
    return make_launch(root, "counting", {"samples": samples}, samples, workers=workers, train=train, **more)


def counts_of(launch: Launch, samples: int) -> torch.Tensor:
    state, _ = final_state(launch, "counting", {"samples": samples})
    return next(state.model.parameters()).detach()


def check_each_once(counts: torch.Tensor, log: Events) -> None:
    """A sample adds its worker's part of the stretch's samples: what was lost adds nothing, what was doubled
    too much. The sum tells of every stretch that counts."""
    steps = {event["step"]: event["workers"] for event in log.of("step")}  # the last word on each
    parts = [[w["samples"] for w in workers.values()] for workers in steps.values()]
    wanted = sum(sum(n * n for n in part) / sum(part) for part in parts if sum(part))
    assert float(counts.min()) > 0 and float(counts.max()) <= 1.0 + 1e-6
    assert float(counts.double().sum()) == pytest.approx(wanted, rel=1e-5)


def test_alone_with_a_plain_outer_step_it_is_plain_training(tmp_path: Path) -> None:
    launch = counting(tmp_path, 300, 1, batch=20)
    assert run(launch).status == "finished"
    assert torch.equal(counts_of(launch, 300), torch.ones(300))


def test_two_workers_count_each_sample_once(tmp_path: Path) -> None:
    launch = counting(tmp_path, 600, 2, batch=40)
    assert run(launch).status == "finished"
    check_each_once(counts_of(launch, 600), read_events(tmp_path / "events.jsonl"))


def test_by_the_clock_what_was_not_done_in_time_is_done_later(tmp_path: Path) -> None:
    launch = counting(tmp_path, 4000, 2, batch=2000, window_s=0.2)
    assert run(launch).status == "finished"
    log = read_events(tmp_path / "events.jsonl")
    check_each_once(counts_of(launch, 4000), log)
    back = [w["gave_back"] for step in log.of("step") for w in step["workers"].values() if "gave_back" in w]
    assert back, "nobody ran out of time"


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(4))
def test_each_sample_once_under_kills(tmp_path: Path, seed: int) -> None:
    shares = {"w0": 0.47, "w1": 0.33, "w2": 0.20}  # no two of their parts sum to a third one
    launch = counting(
        tmp_path, 12_000, 3, batch=100, shares=shares,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=20 + seed),
        members={"same_failures": 1000, "backoff_s": 0.02, "backoff_max_s": 0.05},
    )  # fmt: skip
    run_under(launch, seed)
    log = read_events(tmp_path / "events.jsonl")
    rounds = {tuple(event["members"]) for event in log.of("round")}
    allowed = {
        n / 100
        for members in rounds
        for n in split(100, {w: shares[w] / sum(shares[m] for m in members) for w in members}).values()
    }
    counts = counts_of(launch, 12_000)
    off = torch.stack([(counts - part).abs() for part in sorted(allowed)]).min(dim=0).values
    assert float(off.max()) < 1e-5, (
        f"{int((off > 1e-5).sum())} samples are wrong, e.g. {counts[off.argmax()]}"
    )
    assert log.of("fault")


def test_it_learns_as_well_as_one_exchange_a_step(tmp_path: Path) -> None:
    losses = {}
    for sync in ("each_step", "edit"):
        train = TrainConfig(
            seed=3, micro_batch=8, schedule=STEADY, sync=sync, edit=EditConfig(local_batch=8)
        )  # fmt: skip
        batch = 16 if sync == "each_step" else 128
        launch = make_launch(
            tmp_path / sync, "regression", {"samples": 4096}, 4096, workers=2, batch=batch, train=train,
            epochs=2,
        )  # fmt: skip
        assert run(launch).status == "finished"
        losses[sync] = read_events(tmp_path / sync / "events.jsonl").of("step")[-1]["metrics"]["loss"]
    assert losses["edit"] < 1.3 * losses["each_step"]


def job(**settings: Any) -> JobConfig:
    return JobConfig(job="pretrain", **settings)


def test_what_does_not_go_together_is_refused_with_what_does() -> None:
    edit = TrainConfig(sync="edit")
    backup = FleetConfig(control=ControlConfig(policy="backup"))
    for settings, hint in (
        ({"fleet": FleetConfig(pace=PaceConfig(window_s=1.0))}, "train.sync=edit"),
        ({"train": edit, "fleet": backup}, "window_s"),
        ({"train": edit, "parallel": ParallelConfig(strategy="IIG")}, "parallel.strategy=NNN"),
        ({"fleet": backup, "parallel": ParallelConfig(strategy="GGG")}, "parallel.strategy=NNN"),
    ):
        with pytest.raises(ConfigError) as refused:
            job(**settings)
        assert hint in refused.value.todo
    assert job(train=edit).sharding_wish.strategy == "NNN" and job().sharding_wish.strategy == "auto"
