"""What the controller does to a run: samples weigh the same wherever they are computed, and none is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shoestring.base.clock import SystemClock
from shoestring.base.record import read_events
from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.fleet import messages as m
from shoestring.fleet.launch import Launch
from shoestring.fleet.local import LocalHost
from shoestring.fleet.supervisor import Interrupts, Supervisor
from shoestring.train.config import ShardingConfig, TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.state import TrainState
from shoestring.train.task import StepContext
from tests.train.fleets import final_state, make_launch, run, steps_told
from tests.train.tasks import RegressionTask

STEADY = ScheduleConfig(kind="constant", warmup=0.0)
CUT = ShardingConfig(strategy="GGG")


def control(policy: str, **options: Any) -> ControlConfig:
    return ControlConfig(
        policy=f"tests.train.policies:{policy}", interval_s=0.0, options=PolicyOptions(**options)
    )


def trained(launch: Launch) -> torch.Tensor:
    outcome = run(launch)
    assert outcome.status == "finished", outcome
    state, _ = final_state(launch, "regression", {"samples": 4096})
    return torch.cat([value.detach().reshape(-1) for value in state.model.state_dict().values()])


def regression(root: Path, workers: int = 1, sharding: ShardingConfig | None = None, **more: Any) -> Launch:
    train = TrainConfig(seed=3, micro_batch=9, schedule=STEADY, sharding=sharding or ShardingConfig())
    return make_launch(
        root, "regression", {"samples": 4096}, 4096, workers=workers, batch=50, steps=40, train=train, **more
    )


@pytest.mark.parametrize(
    "sharding",
    [pytest.param(ShardingConfig(), marks=pytest.mark.long, id="NNN"), pytest.param(CUT, id="GGG")],
)
def test_other_splits_and_passes_in_each_step_give_the_update_of_one(
    tmp_path: Path, sharding: ShardingConfig
) -> None:
    one = trained(regression(tmp_path / "one"))
    launch = regression(tmp_path / "three", workers=3, sharding=sharding, control=control("restless"))
    three = trained(launch)
    assert torch.linalg.vector_norm(one - three) / torch.linalg.vector_norm(one) < 1e-6
    log = read_events(launch.run_dir / "events.jsonl")
    assert len({tuple(event["shares"].values()) for event in log.of("decision")}) > 20


def test_half_the_learning_rate_moves_half_as_far(tmp_path: Path) -> None:
    launch = counting(tmp_path, 500, ShardingConfig(), control=control("half_rate"))
    assert run(launch).status == "finished"
    state, _ = final_state(launch, "counting", {"samples": 500})
    assert torch.equal(next(state.model.parameters()).detach(), torch.full((500,), 0.5))
    assert read_events(tmp_path / "events.jsonl").of("decision")[0]["action"] == "adjust_lr"


# --- who comes and goes -------------------------------------------------------------------------


def counting(root: Path, samples: int, sharding: ShardingConfig, **more: Any) -> Launch:
    train = TrainConfig(clip_norm=0.0, schedule=STEADY, sharding=sharding)
    return make_launch(root, "counting", {"samples": samples}, samples, batch=10, train=train, **more)


def check_all_ones(launch: Launch, task: str, settings: dict[str, Any]) -> None:
    state, _ = final_state(launch, task, settings)
    counts = next(state.model.parameters()).detach()
    assert torch.equal(counts, torch.ones(len(counts)))


@pytest.mark.faults
@pytest.mark.parametrize(
    "sharding",
    [pytest.param(ShardingConfig(), marks=pytest.mark.long, id="NNN"), pytest.param(CUT, id="GGG")],
)
def test_a_restart_on_purpose_loses_nothing_and_is_no_fault(tmp_path: Path, sharding: ShardingConfig) -> None:
    launch = counting(tmp_path, 12_000, sharding, workers=3, control=control("new_start", max_restarts=2))
    assert run(launch).status == "finished"
    check_all_ones(launch, "counting", {"samples": 12_000})
    log = read_events(launch.run_dir / "events.jsonl")
    asked = [event for event in log.of("decision") if event["action"] == "kill_restart"]
    assert len(asked) == 2 and asked[0]["actions"] == [{"action": "kill_restart", "worker": "w1"}]
    assert not log.of("fault")
    members = [event["members"] for event in log.of("round")]
    assert members[-1] == ["w0", "w1", "w2"]
    # Whoever holds everything goes on at once; cut state is not cut anew for a worker that comes back soon.
    assert (["w0", "w2"] in members) == (sharding.strategy == "NNN")
    reasons = [event["reason"] for event in log.of("checkpoint")]
    assert any("a worker leaves" in reason for reason in reasons)


class NoticeHost(LocalHost):
    """Tells a worker to go (SIGTERM), twice in a run, as schedulers do before they take a machine away."""

    told = 0

    def reap(self) -> tuple[m.Exit, ...]:
        done = steps_told(self._launch)
        if self.told < 2 and done > 300 * (self.told + 1) and (pid := self.worker_pid("w1")):
            os.kill(pid, signal.SIGTERM)
            self.told += 1
        return super().reap()


@pytest.mark.faults
@pytest.mark.parametrize(
    "sharding",
    [pytest.param(ShardingConfig(), marks=pytest.mark.long, id="NNN"), pytest.param(CUT, id="GGG")],
)
def test_who_is_told_to_go_hands_over_and_nothing_is_lost(tmp_path: Path, sharding: ShardingConfig) -> None:
    launch = counting(tmp_path, 12_000, sharding, workers=3)
    host = NoticeHost(launch, SystemClock())
    with Interrupts() as interrupts:
        outcome = Supervisor(launch.fleet.members, host, SystemClock(), lambda status: None, interrupts).run()
    assert outcome.status == "finished", outcome
    check_all_ones(launch, "counting", {"samples": 12_000})
    log = read_events(launch.run_dir / "events.jsonl")
    drained = [event["reason"] for event in log.of("decision") if event["action"] == "drain"]
    assert drained == ["w1 hands over and leaves: told to go (SIGTERM)"] * 2
    assert not log.of("fault") and log.of("round")[-1]["members"] == ["w0", "w1", "w2"]


@pytest.mark.faults
@pytest.mark.long
def test_workers_come_and_go_as_a_policy_likes(tmp_path: Path) -> None:
    launch = counting(
        tmp_path,
        12_000,
        ShardingConfig(),
        workers=2,
        members={"max_workers": 3},
        control=control("come_and_go", extra={"most": 3.0}),
    )
    assert run(launch).status == "finished"
    check_all_ones(launch, "counting", {"samples": 12_000})
    members = [event["members"] for event in read_events(launch.run_dir / "events.jsonl").of("round")]
    assert members[0] == ["w0", "w1"] and ["w0", "w1", "w2"] in members
    assert members[members.index(["w0", "w1", "w2"]) + 1] == ["w0", "w1"]


@pytest.mark.faults
def test_the_samples_of_a_late_worker_count_once_all_the_same(tmp_path: Path) -> None:
    settings = {"samples": 400}
    train = TrainConfig(clip_norm=0.0, micro_batch=4, schedule=STEADY)
    launch = make_launch(
        tmp_path, "winding", settings, 400, workers=2, batch=16, train=train,
        control=ControlConfig(policy="backup", interval_s=0.0, options=PolicyOptions(grace_share=0.0)),
    )  # fmt: skip
    assert run(launch).status == "finished"
    check_all_ones(launch, "winding", settings)
    log = read_events(launch.run_dir / "events.jsonl")
    back = [w["gave_back"] for step in log.of("step") for w in step["workers"].values() if "gave_back" in w]
    assert len(back) > 3 and not log.of("fault")


@pytest.mark.faults
def test_a_step_without_its_late_part_is_the_update_by_the_samples_that_are_in_it(tmp_path: Path) -> None:
    """Replayed in one process, by what the workers' logs and the record say of each step."""
    settings = {"samples": 600}
    launch = make_launch(
        tmp_path, "telling", settings, 600, workers=2, batch=32, steps=12,
        train=TrainConfig(seed=3, clip_norm=1.0, micro_batch=4, schedule=STEADY),
        control=ControlConfig(policy="backup", interval_s=0.0, options=PolicyOptions(grace_share=0.0)),
    )  # fmt: skip
    assert run(launch).status == "finished"
    steps = read_events(launch.run_dir / "events.jsonl").of("step")
    assert any("gave_back" in w for step in steps for w in step["workers"].values()), "nobody was late"
    passes: dict[tuple[str, int], list[int]] = {}
    for name in ("w0", "w1"):
        for line in (launch.run_dir / "logs" / f"{name}.log").read_text().splitlines():
            if line.startswith("pass "):
                step, *ids = map(int, line.split()[1:])
                passes.setdefault((name, step), []).extend(ids)
    task = RegressionTask(**settings)
    state = TrainState(task, torch.device("cpu"), 3)
    for step in steps:
        used = [
            sample
            for name, told in step["workers"].items()
            for sample in passes.get((name, step["step"]), [])[: told["samples"]]
        ]
        ids = np.array(used, dtype=np.int64)
        out = task.loss(state.model, task.load(ids), ids, StepContext(step["step"], 0.0, 3))
        state.inner.zero_grad()
        (out.loss_sum / out.weight).backward()
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), 1.0)
        task.absorb(state.model, out.stats)
        state.inner.step()
    replayed = state.model.state_dict()
    for name, value in final_state(launch, "telling", settings)[0].model.state_dict().items():
        assert torch.allclose(value, replayed[name], atol=1e-5), name


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.parametrize(
    "sharding",
    [pytest.param(ShardingConfig(), marks=pytest.mark.long, id="NNN"), pytest.param(CUT, id="GGG")],
)
def test_a_pass_that_does_not_fit_is_halved_and_its_samples_count_once(
    tmp_path: Path, sharding: ShardingConfig
) -> None:
    settings = {"samples": 400, "sample_bytes": 400_000_000, "room_bytes": 2_500_000_000}
    train = TrainConfig(clip_norm=0.0, micro_batch=16, schedule=STEADY, sharding=sharding)
    launch = make_launch(tmp_path, "hungry", settings, 400, workers=2, batch=40, train=train)
    assert run(launch).status == "finished"
    check_all_ones(launch, "hungry", settings)
    log = read_events(launch.run_dir / "events.jsonl")
    learnt = {
        event["worker"]: event["micro_batch"]
        for event in log.of("decision")
        if event["action"] == "limit_pass"
    }
    assert set(learnt) == {"w0", "w1"} and set(learnt.values()) <= {4, 5, 6, 7, 8}
    assert not log.of("fault")


@pytest.mark.faults
def test_a_single_sample_that_does_not_fit_ends_the_run_with_advice(tmp_path: Path) -> None:
    settings = {"samples": 40, "sample_bytes": 4_000_000_000, "room_bytes": 2_500_000_000}
    train = TrainConfig(clip_norm=0.0, micro_batch=2, schedule=STEADY)
    launch = make_launch(tmp_path, "hungry", settings, 40, workers=2, batch=8, train=train)
    outcome = run(launch)
    assert outcome.status == "failed"
    assert (
        "single sample does not fit into memory" in outcome.error
        and "checkpointing" in outcome.error + outcome.todo
    )
