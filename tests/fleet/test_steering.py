"""What the controller decides reaches the workers at a safe point, and the record says what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import ControlState, Decision, PolicyOptions, RemoveWorker, Restart
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.membership import Membership
from tests.fleet.rig import Rig, positions, save

BY_OPTIONS = "tests.fleet.test_steering:by_options"


def by_options(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Does once what `extra` says."""
    if "restart" in options.extra and "w1" not in state.restarts and len(state.workers) > 1:
        return Decision((Restart("w1"),), "it looks tired", {"step_time_ratio": 0.5})
    if "remove" in options.extra and "w1" in state.workers:
        return Decision((RemoveWorker("w1"),), "one is enough")
    return Decision((), f"restarts cost {state.restart_s:.2f} s")


def rig_with(root: Path, what: str, **changes: Any) -> Rig:
    control = ControlConfig(policy=BY_OPTIONS, interval_s=0.0, options=PolicyOptions(extra={what: 1.0}))
    return Rig(root, samples=64, control=control, **changes)


def leave(rig: Rig) -> None:
    """Step 1 is planned with the decision in it, taken, saved; then the round ends."""
    rig.begin()
    rig.step(0)
    saves = {worker: rig.next(worker, 1) for worker in ("w0", "w1")}
    for worker, reply in saves.items():
        save(rig, reply, worker)
    assert {type(rig.next(worker, 1)) for worker in ("w0",)} == {m.Regroup}


def test_a_worker_to_be_restarted_leaves_at_the_boundary_after_a_checkpoint(tmp_path: Path) -> None:
    rig = rig_with(tmp_path, "restart")
    leave(rig)
    dismissed = rig.join("w1", step=1, last_round=1)
    assert isinstance(dismissed, m.Dismissed) and "it looks tired" in dismissed.reason
    assert isinstance(rig.join("w1", step=1, last_round=1), m.Dismissed)  # a repeated request
    round_ = rig.join("w0", step=1, last_round=1)
    assert isinstance(round_, m.Round) and round_.members == ("w0",)
    assert "it looks tired" in rig.events.of("round")[-1]["reason"]
    assert rig.tick().spawn == (("w1", 2),)
    rig.tick(m.Exit("w1", 1, 0))  # the old process ends in good order: nobody's fault
    assert not rig.events.of("fault")
    assert isinstance(rig.next("w0", 1, round_id=2), m.Order)
    rig.join("w1", incarnation=2)
    assert isinstance(rig.next("w0", 2, round_id=2), m.Regroup)
    both = rig.join("w0", step=2, last_round=2)
    assert isinstance(both, m.Round) and both.members == ("w0", "w1")
    assert isinstance(rig.next("w0", 2, round_id=3), m.Order)
    asked = [event for event in rig.events.of("decision") if event["action"] == "kill_restart"]
    assert len(asked) == 1
    # What it has cost is known from now on.
    cost = float(rig.events.of("decision")[-1]["reason"].split()[2])
    assert cost > 0


def test_a_worker_to_be_removed_does_not_come_back(tmp_path: Path) -> None:
    rig = rig_with(tmp_path, "remove")
    leave(rig)
    assert isinstance(rig.join("w1", step=1, last_round=1), m.Dismissed)
    assert isinstance(rig.join("w0", step=1, last_round=1), m.Round)
    assert rig.tick(m.Exit("w1", 1, 0), after_s=60.0).spawn == ()
    rig.restart()  # and a coordinator that comes back knows it
    assert rig.tick(after_s=1.0).spawn == ()


def test_a_worker_that_dies_before_it_can_leave_is_a_fault_like_any_other(tmp_path: Path) -> None:
    rig = rig_with(tmp_path, "restart")
    rig.begin()
    rig.step(0)
    rig.tick(m.Exit("w1", 1, -9, "killed"))
    assert len(rig.events.of("fault")) == 1
    assert isinstance(rig.join("w0", step=0, last_round=1), m.Round)
    assert rig.tick(after_s=1.0).spawn == (("w1", 2),)
    rig.next("w0", 0, round_id=2)
    assert not isinstance(rig.join("w1", incarnation=2), m.Dismissed)


def test_passes_are_told_and_all_make_as_many_as_who_makes_most(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tick()
    rig.send(m.Join("w0", 1, -1, micro_batch=4))
    rig.send(m.Join("w1", 1, -1, micro_batch=1))
    rig.send(m.Join("w0", 1, -1, micro_batch=4))
    orders = [rig.next(worker, 0) for worker in ("w0", "w1")]
    assert all(isinstance(order, m.Order) for order in orders)
    assert [(o.micro_batch, o.passes, o.lr_factor) for o in orders if isinstance(o, m.Order)] == [
        (4, 4, 1.0),
        (1, 4, 1.0),
    ]


def test_a_pass_that_does_not_fit_is_halved_and_its_samples_are_done_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tick()
    for worker in ("w0", "w1", "w0"):
        rig.send(m.Join(worker, 1, -1, micro_batch=4))
    for worker in ("w0", "w1"):
        rig.next(worker, 0)
    told = m.OutOfMemory("w1", 1, 1, 1, 4, "cannot allocate")
    assert isinstance(rig.send(told), m.Ack)
    assert isinstance(rig.send(told), m.Regroup)  # a repeated request changes nothing
    assert isinstance(rig.next("w0", 0), m.Regroup)
    rig.send(m.Join("w0", 1, 0, 1, micro_batch=4))
    rig.send(m.Join("w1", 1, 0, 1, micro_batch=4))
    orders = {worker: rig.next(worker, 0, round_id=2) for worker in ("w0", "w1")}
    assert sorted(p for order in orders.values() for p in positions(order)) == list(range(8))
    assert [o.micro_batch for o in orders.values() if isinstance(o, m.Order)] == [4, 2]
    assert rig.done() == 0 and not rig.events.of("fault")
    (event,) = (e for e in rig.events.of("decision") if e["action"] == "limit_pass")
    assert event["micro_batch"] == 2 and "w1 has no memory for a pass of 4 samples" in event["reason"]


def test_what_came_of_a_split_is_recorded(tmp_path: Path) -> None:
    control = ControlConfig(policy="lb-bsp", interval_s=100.0, short_window_s=1000.0)
    rig = Rig(tmp_path, samples=800, control=control)
    rig.begin()
    for step in range(8):
        rig.now += 2.0
        rig.step(step)
    for worker, took_s in (("w0", 0.5), ("w1", 1.2)):  # no change so plain that the policy is asked at once
        rig.send(m.Next(worker, 1, 1, 8, m.StepReport(4, took_s, 0.1)))
    rig.now += 100.0
    rig.step(9)
    for step in range(10, 18):
        rig.now += 1.0
        rig.step(step)
    (effect,) = rig.events.of("effect")
    assert effect["action"] == "adjust_batch" and effect["of_step"] == 10
    assert effect["after_s"] < effect["before_s"] and "% of the time before" in effect["reason"]


def test_the_first_step_of_a_process_says_nothing_of_its_speed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=64, control=ControlConfig(policy="lb-bsp", interval_s=0.0))
    rig.begin()
    rig.step(0)
    for worker in ("w0", "w1"):
        rig.send(m.Next(worker, 1, 1, 1, m.StepReport(4, 100.0 if worker == "w0" else 1.0, 0.1)))
    speeds = rig.tick().status.workers
    assert speeds["w0"]["samples_per_s"] == speeds["w1"]["samples_per_s"] == 0.0
    rig.step(2)
    assert rig.tick().status.workers["w0"]["samples_per_s"] == pytest.approx(8.0)


@pytest.mark.parametrize("most", [0, 3])
def test_room_is_what_the_settings_leave(tmp_path: Path, most: int) -> None:
    members = MemberConfig(workers=2, max_workers=most)
    fleet = Membership(members, ("w0", "w1"))
    assert fleet.room == max(0, most - 2)
    fleet.start_due(0.0)
    fleet.retire(1.0, "w1", again=False)
    assert fleet.room == max(0, most - 2) + 1
    assert fleet.add(2.0, 1) == ("w1",) and fleet.start_due(2.0) == ("w1",)
    assert fleet.current("w1", 2)
    assert fleet.add(3.0, 1) == ("w2",)
