"""The loop's promises: any split gives the same update, bad samples are named, tasks need no change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from shoestring.base.record import read_events
from shoestring.data.store import DurableLedger
from shoestring.fleet.config import CheckpointConfig
from shoestring.train.config import TrainConfig
from shoestring.train.schedules import ScheduleConfig
from shoestring.train.worker import flushed_denormals
from tests.train.fleets import final_state, make_launch, run

STEADY = ScheduleConfig(kind="constant", warmup=0.0)


def test_three_uneven_workers_give_the_update_of_one(tmp_path: Path) -> None:
    settings = {"samples": 4096}
    states = []
    for name, workers, shares in (("one", 1, None), ("three", 3, {"w0": 0.55, "w1": 0.33, "w2": 0.12})):
        train = TrainConfig(seed=3, micro_batch=9, clip_norm=1.0, schedule=STEADY)
        launch = make_launch(
            tmp_path / name,
            "regression",
            settings,
            4096,
            workers=workers,
            batch=50,
            steps=50,
            shares=shares,
            train=train,
        )
        assert run(launch).status == "finished"
        states.append(final_state(launch, "regression", settings)[0])
        steps = read_events(launch.run_dir / "events.jsonl").of("step")
        assert len(steps) == 50 and all(step["counts"]["tokens"] == 50 for step in steps)
    split = {w: r["samples"] for w, r in steps[-1]["workers"].items()}
    assert split == {"w0": 28, "w1": 16, "w2": 6}
    one, three = (torch.cat([p.detach().reshape(-1) for p in s.model.state_dict().values()]) for s in states)
    moved = torch.linalg.vector_norm(one - torch.cat([p.detach().reshape(-1) for p in _initial(settings)]))
    assert moved > 0.1
    assert torch.linalg.vector_norm(one - three) / torch.linalg.vector_norm(one) < 1e-6


def _initial(settings: dict[str, int]) -> list[torch.Tensor]:
    from shoestring.train.state import TrainState
    from tests.train.tasks import RegressionTask

    return list(TrainState(RegressionTask(**settings), torch.device("cpu"), 3).model.state_dict().values())


def test_every_sample_is_counted_once_over_two_epochs(tmp_path: Path) -> None:
    launch = make_launch(
        tmp_path,
        "counting",
        {"samples": 1000},
        1000,
        workers=2,
        batch=64,
        epochs=2,
        train=TrainConfig(clip_norm=0.0, schedule=STEADY),
    )
    assert run(launch).status == "finished"
    state, _ = final_state(launch, "counting", {"samples": 1000})
    assert torch.equal(next(state.model.parameters()).detach(), torch.full((1000,), 2.0))


def test_poisoned_samples_end_on_the_dead_list_and_the_rest_counts_once(tmp_path: Path) -> None:
    settings = {"samples": 500, "poison": [7, 123]}
    launch = make_launch(
        tmp_path, "counting", settings, 500, batch=32, train=TrainConfig(clip_norm=0.0, schedule=STEADY)
    )
    outcome = run(launch)
    assert outcome.status == "finished", outcome
    state, _ = final_state(launch, "counting", settings)
    expected = torch.ones(500)
    expected[[7, 123]] = 0.0
    assert torch.equal(next(state.model.parameters()).detach(), expected)
    with DurableLedger.open(f"sqlite:///{tmp_path / 'ledger.db'}", launch.ledger) as ledger:
        dead = ledger.dead_letters()
    assert len(dead) == 2 and all("poison" in letter.error for letter in dead)


def test_too_many_dead_samples_fail_the_run(tmp_path: Path) -> None:
    settings = {"samples": 200, "poison": list(range(0, 200, 4))}
    outcome = run(make_launch(tmp_path, "counting", settings, 200, batch=32))
    assert outcome.status == "failed" and "dead" in outcome.error


@pytest.mark.parametrize(
    ("task", "samples", "metric"), [("sine", 4096, "loss"), ("generate_then_learn", 2048, "loss")]
)
def test_other_kinds_of_training_need_no_change_of_the_loop(
    tmp_path: Path, task: str, samples: int, metric: str
) -> None:
    launch = make_launch(
        tmp_path,
        task,
        {},
        samples,
        workers=2,
        batch=32,
        steps=60,
        epochs=4,
        train=TrainConfig(micro_batch=16, schedule=STEADY),
    )
    assert run(launch).status == "finished"
    losses = [step["metrics"][metric] for step in read_events(tmp_path / "events.jsonl").of("step")]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_a_checkpoint_of_three_resumes_on_two(tmp_path: Path) -> None:
    settings = {"samples": 600}
    train = TrainConfig(clip_norm=0.0, schedule=STEADY)
    first = make_launch(
        tmp_path,
        "counting",
        settings,
        600,
        workers=3,
        batch=30,
        steps=7,
        train=train,
        checkpoint=CheckpointConfig(every_s=0.0, every_steps=3, keep=2),
    )
    assert run(first).status == "finished"
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000007"]
    second = make_launch(tmp_path, "counting", settings, 600, workers=2, batch=30, train=train)
    assert run(second).status == "finished"
    state, _ = final_state(second, "counting", settings)
    assert torch.equal(next(state.model.parameters()).detach(), torch.ones(600))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_loss_trains_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A cache of its own: one that a killed compiler left behind must not decide this.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    states = []
    for name, compile_it in (("plain", False), ("compiled", True)):
        train = TrainConfig(micro_batch=32, schedule=STEADY, compile=compile_it)
        launch = make_launch(tmp_path / name, "regression", {}, 4096, batch=32, steps=5, train=train)
        assert run(launch).status == "finished"
        states.append(final_state(launch, "regression", {})[0].model.state_dict())
    for key, value in states[0].items():
        assert torch.allclose(value, states[1][key], atol=1e-5), key


def test_denormals_are_flushed_inside_and_kept_outside() -> None:
    tiny = torch.tensor(1e-39)
    assert float(tiny * 1.0) > 0
    with flushed_denormals():
        assert float(tiny * 1.0) == 0
    assert float(tiny * 1.0) > 0
