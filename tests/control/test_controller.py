"""The controller asks its policy once an interval, refuses what cannot be, and tells what came of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.errors import ConfigError
from shoestring.control.controller import STEPS, TELLING_STEPS, ControlConfig, Controller, Facts, wrong
from shoestring.control.decisions import (
    Action,
    AddWorkers,
    AdjustAccumulation,
    AdjustBatch,
    AdjustLr,
    ControlState,
    Decision,
    PolicyOptions,
    RemoveWorker,
    Restart,
    UseBackups,
    in_record,
)
from shoestring.control.monitor import Monitor
from tests.control.states import seen, state

FACTS = Facts(batch=100)


def controller(policy: str = "nd", **options: Any) -> tuple[Controller, Monitor]:
    monitor = Monitor(15.0, 300.0)
    config = ControlConfig(policy=policy, interval_s=5.0, options=PolicyOptions(**options))
    return Controller(config, monitor), monitor


def straggle(monitor: Monitor) -> None:
    for at_s in (1.0, 2.0, 3.0):
        monitor.observe(at_s, "w0", 10, 1.0)
        monitor.observe(at_s, "w1", 10, 3.0)


def test_decisions_come_once_an_interval_and_are_in_force() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    assert control.decide(0.0, 1, FACTS) is None
    straggle(monitor)
    decision = control.decide(3.0, 3, FACTS)
    assert decision is not None and decision.actions
    assert control.shares == pytest.approx({"w0": 0.75, "w1": 0.25})
    assert control.decide(7.9, 4, FACTS) is None
    assert control.decide(8.0, 5, FACTS) is not None


def test_a_new_round_is_judged_as_soon_as_all_were_seen_often_enough() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    assert control.decide(0.0, 1, FACTS) is None
    for at_s in (1.0, 2.0):
        monitor.observe(at_s, "w0", 10, 1.0)
        assert control.decide(at_s, 2, FACTS) is None
    monitor.observe(2.5, "w1", 10, 3.0)
    monitor.observe(3.0, "w1", 10, 3.0)
    decision = control.decide(3.0, 3, FACTS)
    assert decision is not None and decision.actions
    assert control.decide(4.0, 4, FACTS) is None
    control.regroup(("w0",))
    assert control.decide(4.5, 5, FACTS) is not None


def test_who_stays_keeps_proportions_and_newcomers_get_the_mean() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    control.decide(0.0, 1, FACTS)
    straggle(monitor)
    control.decide(6.0, 2, FACTS)
    control.regroup(("w0", "w1", "w2"))
    assert control.shares == pytest.approx({"w0": 0.5, "w1": 1 / 6, "w2": 1 / 3})
    control.regroup(("w1",))
    assert control.shares == {"w1": 1.0}


def test_workers_that_had_nothing_to_do_share_evenly_once_they_are_alone() -> None:
    control, _ = controller("fixed", fixed={"w0": 1.0, "w1": 0.0, "w2": 0.0})
    control.regroup(("w0", "w1", "w2"))
    control.decide(0.0, 1, FACTS)
    control.decide(6.0, 2, FACTS)
    assert control.shares == {"w0": 1.0, "w1": 0.0, "w2": 0.0}
    control.regroup(("w1", "w2"))
    assert control.shares == {"w1": 0.5, "w2": 0.5}


def test_a_pass_is_what_was_decided_within_what_memory_holds() -> None:
    control, _ = controller()
    assert control.pass_of("w0", 100) == 100
    control.usual["w0"] = 16
    assert control.pass_of("w0", 100) == 16
    control.micro_batch["w0"] = 8
    assert control.pass_of("w0", 100) == 8
    control.limit("w0", 4)
    control.limit("w0", 6)
    assert control.pass_of("w0", 100) == control.most_of("w0", 100) == 4


# --- effects ----------------------------------------------------------------------------------


def decided(before: int) -> Controller:
    """A controller that has split anew after so many steps of 3 s."""
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    control.decide(0.0, 1, FACTS)
    straggle(monitor)
    for _ in range(before):
        assert control.step_took(3.0) is None
    control.decide(6.0, 9, FACTS)
    return control


def test_what_came_of_a_decision_is_told_once() -> None:
    control = decided(before=STEPS)
    told = [control.step_took(1.5) for _ in range(2 * TELLING_STEPS)]
    effects = [effect for effect in told if effect is not None]
    assert len(effects) == 1 and told[TELLING_STEPS - 1] is effects[0]
    assert (effects[0].step, effects[0].what) == (9, "adjust_batch")
    assert effects[0].ratio == pytest.approx(0.5)
    # Before 0.5 of the batch at 3.33 a second, after 0.25 of it.
    assert effects[0].predicted == pytest.approx(0.5)


def test_without_enough_steps_before_or_with_other_members_nothing_is_told() -> None:
    control = decided(before=TELLING_STEPS - 1)
    assert [control.step_took(1.5) for _ in range(STEPS)] == [None] * STEPS
    control = decided(before=STEPS)
    control.regroup(("w0",))
    assert [control.step_took(1.5) for _ in range(STEPS)] == [None] * STEPS


# --- policies of one's own ----------------------------------------------------------------------


def test_a_policy_of_the_users_is_a_function_in_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_policies.py").write_text(
        "from shoestring.control.decisions import AdjustBatch, Decision\n"
        "def first(now, state, options):\n"
        "    rest = [w for w in state.workers if w != 'w0']\n"
        "    share = options.extra['share']\n"
        "    shares = {'w0': share, **{w: (1 - share) / len(rest) for w in rest}}\n"
        "    return Decision((AdjustBatch(shares),), 'w0 first')\n"
        "def broken(now, state, options):\n"
        "    raise KeyError('nothing there')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    control, _ = controller("my_policies:first", extra={"share": 0.8})
    control.regroup(("w0", "w1"))
    control.decide(0.0, 1, FACTS)
    assert control.decide(5.0, 2, FACTS) is not None
    assert control.shares == pytest.approx({"w0": 0.8, "w1": 0.2})

    control, _ = controller("my_policies:broken")
    control.regroup(("w0", "w1"))
    control.decide(0.0, 1, FACTS)
    decision = control.decide(5.0, 2, FACTS)
    assert decision is not None and not decision.actions
    assert "nothing there" in decision.reason and "my_policies:broken" in decision.reason
    assert control.shares == {"w0": 0.5, "w1": 0.5}

    for name, said in [
        ("nobody", "no policy 'nobody'"),
        ("my_policies:none_such", "cannot be loaded"),
        ("no_such_module:decide", "cannot be loaded"),
        ("my_policies:number", "is no function"),
    ]:
        with pytest.raises(ConfigError, match=said):
            controller(name)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (AdjustBatch({"w0": 1.0}), "others than the workers"),
        (AdjustBatch({"w0": 0.9, "w1": 0.2}), "sum to 1"),
        (AdjustBatch({"w0": math.nan, "w1": 0.2}), "sum to 1"),
        (AdjustAccumulation({"w9": 3}), "not there"),
        (AdjustAccumulation({"w0": 0}), "less than a sample"),
        (AdjustLr(0.0), "no sense"),
        (Restart("w9"), "not there"),
        (RemoveWorker("w9"), "not there"),
        (AddWorkers(2), "room for 1"),
    ],
)
def test_what_cannot_be_is_refused(action: Action, said: str) -> None:
    fleet = state({"w0": seen(1.0), "w1": seen(1.0)}, room=1)
    assert said in wrong(Decision((action,), ""), fleet)


def test_backup_workers_are_refused_where_a_step_needs_all() -> None:
    decision = Decision((UseBackups(1, 0.2),), "")
    whole = state({"w0": seen(30.0), "w1": seen(10.0)})
    assert not wrong(decision, whole)
    assert "no worker holds all" in wrong(decision, replace(whole, whole_state=False))
    assert not wrong(Decision((UseBackups(0, 0.0),), ""), replace(whole, whole_state=False))
    maker = Controller(ControlConfig(whole_state=False), Monitor(15.0, 300.0))
    assert not maker.state(0.0, FACTS).whole_state


def test_the_last_worker_is_not_removed() -> None:
    fleet = state({"w0": seen(1.0), "w1": seen(1.0)})
    both = (RemoveWorker("w0"), RemoveWorker("w1"))
    assert wrong(Decision(both[:1], ""), fleet) == ""
    assert "nobody would be left" in wrong(Decision(both, ""), fleet)


def test_all_actions_that_can_be_are_taken_and_recorded() -> None:
    actions: tuple[Action, ...] = (
        AdjustBatch({"w0": 0.75, "w1": 0.25}),
        AdjustAccumulation({"w0": 3}),
        AdjustLr(0.5),
        AddWorkers(1),
        RemoveWorker("w1"),
        Restart("w0"),
    )
    fleet = state({"w0": seen(1.0), "w1": seen(1.0)}, room=1)
    assert wrong(Decision(actions, ""), fleet) == ""
    kinds = {in_record(action)["action"] for action in actions}
    assert kinds == {
        "adjust_batch", "adjust_accumulation", "adjust_lr", "add_workers", "remove_worker",
        "kill_restart",
    }  # fmt: skip
    assert in_record(actions[0]) == {"action": "adjust_batch", "shares": {"w0": 0.75, "w1": 0.25}}


def test_a_policy_that_gives_no_decision_is_told_so() -> None:
    fleet: ControlState = state({"w0": seen(1.0)})
    assert "gave a dict" in wrong({}, fleet)  # type: ignore[arg-type]


def test_who_was_restarted_is_remembered_with_its_speed() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1", "w2"))
    for step in range(300):
        for name, took_s in (("w0", 1.0), ("w1", 1.0), ("w2", 4.0)):
            monitor.observe(float(step * 2), name, 10, took_s)
    decision = control.decide(600.0, 1, FACTS)
    assert decision is not None and decision.actions[-1] == Restart("w2")
    (before,) = control.state(607.0, FACTS).restarts["w2"]
    assert (before.at_s, before.samples_per_s) == (600.0, pytest.approx(2.5))
