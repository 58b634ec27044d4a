"""Whom a step does not wait for, and what becomes of its samples."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoestring.control.controller import ControlConfig
from shoestring.control.decisions import PolicyOptions
from shoestring.fleet import messages as m
from shoestring.fleet.latecomers import note_ready, verdict
from shoestring.fleet.rounds import RoundState, StepPlan
from tests.fleet.rig import Delivery, Rig, positions

NAMES = ("w0", "w1", "w2", "w3")


def round_of(samples: tuple[int, ...] = (2, 2, 2, 2)) -> RoundState:
    """A round whose step 1 was planned at 100 s."""
    round_ = RoundState(1, NAMES, 0, -1, "", 100.0)
    round_.plans[1] = StepPlan(1, {}, dict(zip(NAMES, samples, strict=True)), 100.0)
    return round_


def test_nobody_is_late_before_enough_are_through() -> None:
    round_ = round_of()
    note_ready(101.0, round_, "w0", 1)
    note_ready(101.0, round_, "w1", 1)
    assert not verdict(105.0, round_, "w3", 1, (1, 0.0)).late
    note_ready(102.0, round_, "w2", 1)
    assert verdict(102.0, round_, "w3", 1, (1, 0.0)).late


def test_the_grace_is_a_part_of_the_time_that_the_others_took() -> None:
    round_ = round_of()
    for name in NAMES[:3]:
        note_ready(102.0, round_, name, 1)
    before = verdict(102.3, round_, "w3", 1, (1, 0.25))
    assert not before.late and before.retry_s == pytest.approx(0.2)
    assert verdict(102.3 + before.retry_s, round_, "w3", 1, (1, 0.25)).late


def test_who_has_nothing_to_do_is_not_counted_among_the_quick() -> None:
    round_ = round_of((2, 2, 0, 0))
    note_ready(100.1, round_, "w2", 1)
    note_ready(100.1, round_, "w3", 1)
    assert not verdict(101.0, round_, "w1", 1, (1, 0.0)).late
    note_ready(101.0, round_, "w0", 1)
    assert verdict(101.0, round_, "w1", 1, (1, 0.0)).late


def test_the_last_one_with_samples_is_never_late() -> None:
    round_ = round_of((2, 0, 0, 0))
    assert not verdict(1000.0, round_, "w0", 1, (3, 0.0)).late


def test_who_is_through_is_not_late_and_old_steps_are_no_matter() -> None:
    round_ = round_of()
    for name in NAMES:
        note_ready(101.0, round_, name, 1)
    assert not verdict(109.0, round_, "w3", 1, (1, 0.0)).late
    assert not verdict(109.0, round_, "w3", 7, (1, 0.0)).late


def backed(root: Path, delivery: Delivery = "at_least_once") -> Rig:
    """A fleet whose steps do not wait for the slowest, after its first decision."""
    options = PolicyOptions(backups=1, grace_share=0.0)
    control = ControlConfig(policy="backup", interval_s=0.0, options=options)
    rig = Rig(root, delivery=delivery, control=control)
    rig.begin()
    return rig


def test_samples_that_were_given_back_are_leased_again_and_only_they(tmp_path: Path) -> None:
    rig = backed(tmp_path)
    first, second = rig.next("w0", 0), rig.next("w1", 0)
    assert isinstance(second, m.Order) and second.backups == 1
    assert rig.send(m.Ready("w0", 1, 1, 1, m.StepReport(4, 0.5, 0.0))) == m.Ack()
    told = rig.send(m.Lagging("w1", 1, 1, 1))
    assert isinstance(told, m.Verdict) and told.late
    kept, *rest = positions(second)
    back = m.GiveBack("w1", 1, 1, 1, tuple((p, p + 1) for p in rest))
    assert rig.send(back) == m.Ack()
    rig.next("w0", 1)
    third = rig.next("w1", 1, samples=1)
    assert rig.done() == len(positions(first)) + 1
    again = {p for order in (rig.next("w0", 1), third) for p in positions(order)}
    assert set(rest) <= again and kept not in again
    row = rig.events.of("step")[0]["workers"]
    assert row["w1"]["gave_back"] == len(rest) and "gave_back" not in row["w0"]


def test_a_late_copy_of_a_give_back_changes_nothing(tmp_path: Path) -> None:
    rig = backed(tmp_path)
    rig.next("w0", 0)
    back = m.GiveBack("w1", 1, 1, 1, tuple((p, p + 1) for p in positions(rig.next("w1", 0))))
    rig.send(back)
    rig.next("w0", 1)
    rig.next("w1", 1, samples=0)
    before = rig.ledger.counts()
    rig.send(back)
    assert rig.ledger.counts() == before and before.doing == 8


def test_what_is_given_back_is_no_attempt_also_under_at_most_once(tmp_path: Path) -> None:
    rig = backed(tmp_path, "at_most_once")
    rig.next("w0", 0)
    back = positions(rig.next("w1", 0))
    rig.send(m.GiveBack("w1", 1, 1, 1, tuple((p, p + 1) for p in back)))
    counts = rig.ledger.counts()
    assert (counts.todo, counts.skipped, counts.dead) == (32 - 4, 0, 0)
    rig.tick(m.Exit("w0", 1, -9))  # what its lease still held is not done again
    rig.join("w1", step=0, last_round=1)
    assert rig.ledger.counts().skipped == 4


# --- speeds before the exchange -----------------------------------------------------------------


def take(rig: Rig, step: int, seconds: dict[str, float]) -> dict[str, m.Order]:
    """Both compute their part of a step that lasts as long as the slower one, and tell before the exchange;
    `w0` is the first to ask for the next one. Returns the orders of this step."""
    orders = {}
    for name in ("w0", "w1"):
        report = m.StepReport(4, seconds[name], 0.1) if step > 1 else None
        reply = rig.send(m.Next(name, 1, 1, step - 1, report))
        assert isinstance(reply, m.Order)
        orders[name] = reply
    rig.now += max(seconds.values())
    for name, order in orders.items():
        if order.tell:
            count = len(positions(order))
            report = m.StepReport(count, seconds[name] * count / 4, 0.0)
            assert rig.send(m.Ready(name, 1, 1, step, report)) == m.Ack()
    return orders


def test_the_next_step_is_planned_by_all_speeds_of_this_one(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=64, control=ControlConfig(interval_s=0.0))
    rig.begin()
    first = take(rig, 1, {"w0": 1.0, "w1": 4.0})  # of new processes: not believed
    second = take(rig, 2, {"w0": 1.0, "w1": 4.0})
    third = take(rig, 3, {"w0": 1.0, "w1": 4.0})
    assert all(order.tell for orders in (first, second, third) for order in orders.values())
    sizes = [[len(positions(o)) for o in orders.values()] for orders in (first, second, third)]
    assert sizes == [[4, 4], [4, 4], [6, 2]], "though w0 asks before w1 has reported its second step"


def test_a_speed_that_was_told_before_the_exchange_counts_once(tmp_path: Path) -> None:
    seen = {}
    for told in (True, False):
        control = ControlConfig(interval_s=1e9, policy="nd" if told else "none")
        rig = Rig(tmp_path / str(told), samples=64, control=control)
        rig.begin()
        for step in range(1, 5):
            take(rig, step, {"w0": 1.0, "w1": 1.0})
        rig.next("w0", 4)
        seen[told] = rig.coordinator._steering._monitor.view(rig.now, ("w0",))["w0"].short.reports
    assert seen == {True: 3, False: 3}


def test_short_steps_and_policies_that_go_by_no_speed_cost_no_message_more(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "nd", samples=64, control=ControlConfig(policy="nd"))
    rig.begin()
    assert take(rig, 1, {"w0": 0.05, "w1": 0.05})["w0"].tell, "nobody knows yet how long a step takes"
    take(rig, 2, {"w0": 0.05, "w1": 0.05})
    assert not take(rig, 3, {"w0": 0.05, "w1": 0.05})["w0"].tell
    rig = Rig(tmp_path / "none", samples=64, control=ControlConfig(policy="none"))
    rig.begin()
    assert not take(rig, 1, {"w0": 5.0, "w1": 5.0})["w0"].tell
