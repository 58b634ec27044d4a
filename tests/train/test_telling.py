"""Real workers tell what they have computed before they go into a step's exchange."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring.base.record import read_events
from shoestring.control.controller import ControlConfig
from shoestring.fleet.messages import StepReport
from shoestring.fleet.seat import Seat
from shoestring.train.config import EditConfig, TrainConfig
from tests.train.fleets import make_launch, run


@pytest.mark.parametrize("sync", ["each_step", "edit"])
@pytest.mark.parametrize("policy", ["nd", "none"])
def test_workers_tell_their_work_before_the_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, policy: str
) -> None:
    told = tmp_path / "told"
    told.touch()
    say = Seat.ready

    def ready(self: Seat, round_id: int, step: int, report: StepReport) -> None:
        with told.open("a") as file:  # workers are forked from here
            file.write(json.dumps([self.name, step, report.samples, report.compute_s]) + "\n")
        say(self, round_id, step, report)

    monkeypatch.setattr(Seat, "ready", ready)
    train = TrainConfig(clip_norm=0.0, micro_batch=4)
    if sync == "edit":
        train = train.model_copy(update={"sync": "edit", "edit": EditConfig(warmup=10_000)})
    launch = make_launch(
        tmp_path / "run", "counting", {"samples": 200}, 200, workers=2, batch=40, train=train,
        control=ControlConfig(policy=policy),
    )  # fmt: skip
    assert run(launch).status == "finished"
    lines = [json.loads(line) for line in told.read_text().splitlines()]
    if policy == "none":
        assert not lines
        return
    first = {name: (samples, took_s) for name, step, samples, took_s in lines if step == 1}
    (step,) = [
        event for event in read_events(launch.run_dir / "events.jsonl").of("step") if event["step"] == 1
    ]
    assert {name: samples for name, (samples, _) in first.items()} == {
        name: one["samples"] for name, one in step["workers"].items()
    }
    assert all(took_s > 0 for _, took_s in first.values())
