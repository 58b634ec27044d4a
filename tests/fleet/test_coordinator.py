"""The coordinator by hand: every message sent by the test, time from a fake clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig, DrillConfig, PaceConfig
from tests.fleet.rig import Rig, positions, save


def test_members_split_a_batch_and_it_counts_when_all_have_applied_it(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    first, second = rig.next("w0", 0), rig.next("w1", 0)
    assert sorted(positions(first) + positions(second)) == list(range(8))
    assert rig.next("w0", 0) == first  # asked again, answered the same
    assert isinstance(rig.next("w0", 1), m.Order)
    assert rig.done() == 0
    rig.next("w1", 1)
    assert rig.done() == 8
    (event,) = rig.events.of("step")
    assert event["step"] == 1 and event["counts"] == {"tokens": 8.0} and set(event["workers"]) == {"w0", "w1"}


def test_to_the_end_of_the_data_with_a_final_checkpoint(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    for step in range(4):
        rig.step(step)
    assert isinstance(rig.next("w0", 4), m.Wait)  # w1 has not applied the last step yet
    saves = [rig.next("w1", 4), rig.next("w0", 4)]
    assert isinstance(save(rig, saves[1], "w0"), m.Wait)
    assert save(rig, saves[0], "w1") == m.Committed(4, True)
    assert rig.send(m.Saved("w0", 1, 1, 4)) == m.Committed(4, True)
    assert isinstance(rig.next("w0", 4), m.Stop) and isinstance(rig.next("w1", 4), m.Stop)
    assert rig.tick().outcome == "finished"
    found = rig.keeper.newest()
    assert found.manifest is not None and (found.manifest.step, set(found.manifest.files)) == (
        4,
        {"w0", "w1"},
    )


def test_what_the_dead_worker_had_not_shared_is_done_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    lost = rig.tick(m.Exit("w1", 1, -9, "killed"))  # both were computing step 1
    assert isinstance(rig.next("w0", 0), m.Regroup)
    assert lost.outcome == ""
    round_ = rig.join("w0", step=0, last_round=1)
    assert isinstance(round_, m.Round) and (round_.step, round_.members, round_.source_rank) == (
        0,
        ("w0",),
        0,
    )
    assert positions(rig.next("w0", 0, round_id=2)) == list(range(8))
    assert rig.done() == 0


def test_what_a_survivor_has_applied_stays(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.tick(m.Exit("w1", 1, -9, "killed"))
    round_ = rig.join("w0", step=1, last_round=1)  # the exchange of step 1 was over
    assert isinstance(round_, m.Round) and round_.step == 1
    assert positions(rig.next("w0", 1, round_id=2)) == list(range(8, 16))
    assert rig.done() == 8


def test_a_step_that_only_the_survivor_could_tell_of_is_in_the_record_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.next("w0", 1)
    rig.tick(m.Exit("w1", 1, -9))
    rig.join("w0", step=1, last_round=1)
    rig.next("w0", 1, round_id=2)  # tells of it again
    assert [(event["step"], list(event["workers"])) for event in rig.events.of("step")] == [(1, ["w0"])]
    rig.next("w0", 2, round_id=2)
    assert [event["step"] for event in rig.events.of("step")] == [1, 2]


def test_a_report_that_came_too_late_for_its_round_is_taken_in_the_next(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.tick(m.Exit("w1", 1, -9))
    assert isinstance(rig.next("w0", 1), m.Regroup)
    rig.join("w0", step=1, last_round=1)
    rig.next("w0", 1, round_id=2)
    assert [event["step"] for event in rig.events.of("step")] == [1]


def test_who_is_told_to_go_hands_over_and_leaves_without_a_fault(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    told = m.Next("w1", 1, 1, 1, m.StepReport(4, 0.5, 0.1), "told to go")
    order = rig.send(m.Next("w0", 1, 1, 1, m.StepReport(4, 0.5, 0.1)))  # step 2 is planned by now
    assert isinstance(order, m.Order) and isinstance(rig.send(told), m.Order)
    for worker in ("w0", "w1"):
        save(rig, rig.next(worker, 2), worker)
    assert isinstance(rig.next("w0", 2), m.Regroup) or isinstance(rig.next("w1", 2), m.Regroup)
    assert isinstance(rig.join("w1", step=2, last_round=1), m.Dismissed)
    assert rig.tick(m.Exit("w1", 1, 0)).spawn == (("w1", 2),)
    assert [event["worker"] for event in rig.events.of("decision") if event["action"] == "drain"] == ["w1"]
    assert not rig.events.of("fault")


def test_the_newcomer_gets_the_survivors_state(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.step(1)
    rig.tick(m.Exit("w0", 1, 1, "boom"))
    assert isinstance(rig.join("w1", step=1, last_round=1), m.Round)
    assert rig.tick(after_s=0.2).spawn == (("w0", 2),)
    assert isinstance(rig.next("w1", 1, round_id=2), m.Order)
    assert isinstance(rig.join("w0", incarnation=2), m.Wait)  # the round ends at its next boundary
    assert isinstance(rig.next("w1", 2, round_id=2), m.Regroup)
    round_ = rig.join("w1", step=2, last_round=2)
    assert isinstance(round_, m.Round)
    assert (round_.members, round_.source_rank, round_.step) == (("w0", "w1"), 1, 2)


def test_late_copies_change_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    for step in range(3):
        rig.step(step)
    before = rig.ledger.snapshot_bytes()
    for late in (
        m.Next("w0", 1, 1, 0),
        m.Next("w0", 1, 1, 1),
        m.Join("w0", 1, -1, -1),
        m.Saved("w0", 1, 9, 1),
    ):
        assert not isinstance(rig.send(late), m.Order)
    assert rig.send(m.KvSet(0, "key", b"of another round")) == m.Regroup("this round is over")
    assert rig.ledger.snapshot_bytes() == before
    assert isinstance(rig.next("w0", 2), m.Order)  # the round goes on


def test_only_the_current_incarnation_is_heard(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.tick(m.Exit("w1", 1, 1, "boom"))
    rig.tick(after_s=0.2)
    for request in (
        m.Join("w1", 1, 5),
        m.Next("w1", 1, 1, 0),
        m.Heartbeat("w1", 1, 0, "compute", 0.0),
        m.Join("w7", 1, -1),
    ):
        assert isinstance(rig.send(request), m.Dismissed)
    rig.tick(m.Exit("w1", 1, 1, "boom"), m.Exit("w1", 1, 1, "boom"))  # reported again
    assert len([e for e in rig.events.of("fault") if e.get("worker") == "w1"]) == 1


def test_a_worker_of_another_past_is_not_believed(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    assert isinstance(rig.next("w0", 7), m.Dismissed)
    assert rig.tick().kill == (("w0", 1),)
    assert rig.done() == 0


def test_everybody_dead_means_back_to_the_checkpoint(tmp_path: Path) -> None:
    rig = Rig(tmp_path, checkpoint=CheckpointConfig(every_s=0.0, every_steps=2))
    rig.begin()
    rig.step(0)
    rig.step(1)
    saves = {worker: rig.next(worker, 2) for worker in ("w0", "w1")}
    for worker, reply in saves.items():
        save(rig, reply, worker)
    rig.step(2)
    assert rig.done() == 16
    rig.next("w0", 3)
    rig.next("w1", 3)
    assert rig.done() == 24
    rig.tick(m.Exit("w0", 1, -9, "killed"), m.Exit("w1", 1, -9, "killed"))
    rig.tick(after_s=0.2)
    rig.join("w0", incarnation=2)
    round_ = rig.join("w1", incarnation=2)
    assert isinstance(round_, m.Round) and (round_.step, round_.source_rank) == (2, -1)
    assert round_.checkpoint.endswith("step-00000002")
    assert rig.done() == 16  # the ledger went back with the model


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path) -> None:
    rig = Rig(tmp_path, checkpoint=CheckpointConfig(every_s=0.0, every_steps=1))
    rig.begin()
    rig.step(0)
    for step in (1, 2):
        for worker, reply in {w: rig.next(w, step) for w in ("w0", "w1")}.items():
            save(rig, reply, worker)
        rig.step(step)
    (tmp_path / "checkpoints" / "step-00000002" / "w0").write_bytes(b"??")
    rig.tick(m.Exit("w0", 1, -9, "killed"), m.Exit("w1", 1, -9, "killed"))
    rig.tick(after_s=0.2)
    rig.join("w0", incarnation=2)
    round_ = rig.join("w1", incarnation=2)
    assert isinstance(round_, m.Round) and round_.checkpoint.endswith("step-00000001")
    assert any("step-00000002" in e["reason"] and "damaged" in e["reason"] for e in rig.events.of("fault"))
    assert rig.done() == 8
    # A worker that cannot restore the other one leaves none: that is said, and nothing is lost.
    rig.send(m.BadCheckpoint("w0", 2, round_.round_id, round_.checkpoint, "no tensor"))
    rig.join("w0", incarnation=2, last_round=2)
    rig.join("w1", incarnation=2, last_round=2)
    orders = rig.tick()
    assert orders.outcome == "failed" and "damaged" in orders.error
    told = [e["reason"] for e in rig.events.of("fault") if "was passed over" in e["reason"]]
    assert any("step-00000001" in reason for reason in told), "what was damaged is told also where all is"


def test_a_failed_save_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, checkpoint=CheckpointConfig(every_s=0.0, every_steps=1))
    rig.begin()
    rig.step(0)
    saves = {worker: rig.next(worker, 1) for worker in ("w0", "w1")}
    save(rig, saves["w0"], "w0")
    assert rig.send(m.Saved("w1", 1, 1, 1, {}, "no space left")) == m.Committed(1, False)
    assert isinstance(rig.next("w0", 1), m.Order)
    assert any("no space left" in e["reason"] for e in rig.events.of("fault"))
    assert list((tmp_path / "checkpoints").glob("*")) == []


def test_samples_that_fail_are_tried_again_then_dead_and_named(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=32)
    rig.begin()
    mine = positions(rig.next("w0", 0))
    rig.next("w1", 0)
    failed = m.Failed("w0", 1, 1, 1, ((mine[0], "cannot decode"),))
    assert rig.send(failed) == m.Ack()
    assert rig.send(failed) == m.Ack()  # the answer was lost: counted once
    rig.step(1)
    assert rig.done() == 7 and rig.ledger.counts().dead == 0
    for worker in ("w0", "w1"):
        if mine[0] in positions(rig.next(worker, 1)):
            rig.send(m.Failed(worker, 1, 1, 2, ((mine[0], "cannot decode"),)))
    assert [(letter.position, letter.error) for letter in rig.ledger.dead_letters()] == [
        (mine[0], "cannot decode")
    ]


def test_too_many_dead_samples_fail_the_run(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=32)
    rig.begin()
    for step in range(2):
        for worker in ("w0", "w1"):
            order = rig.next(worker, step)
            if not isinstance(order, m.Order):
                break
            bad = tuple((p, "rotten") for p in positions(order))
            if bad:
                rig.send(m.Failed(worker, 1, 1, step + 1, bad))
    orders = rig.tick()
    assert orders.outcome == "failed" and "dead" in orders.error and "rotten" in orders.error


def test_an_interrupt_saves_at_the_boundary_and_stops(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    assert rig.tick(interrupt=True).outcome == ""
    for worker, reply in {w: rig.next(w, 1) for w in ("w0", "w1")}.items():
        save(rig, reply, worker)
    assert isinstance(rig.next("w0", 1), m.Stop)
    assert rig.tick(interrupt=True).outcome == "interrupted"
    assert rig.keeper.newest().manifest is not None


def test_a_hung_worker_is_killed_and_the_other_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    for _ in range(60):
        rig.now += 0.2
        rig.send(m.Heartbeat("w0", 1, 0, "exchange", 1.0))
        rig.coordinator.tick(rig.now)
    assert rig.tick().kill == (("w1", 1),)
    assert isinstance(rig.join("w0", step=0, last_round=1), m.Wait)  # until the hung one is really gone
    rig.tick(m.Exit("w1", 1, -9, "killed"))
    assert isinstance(rig.join("w0", step=0, last_round=1), m.Round)
    assert any("hung: silent" in e["reason"] for e in rig.events.of("fault"))


def test_a_stall_of_the_coordinator_is_not_the_workers_silence(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.now += 1000.0
    assert rig.tick().kill == ()


def test_it_comes_back_from_the_store(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.step(1)
    rig.restart()
    assert isinstance(rig.next("w0", 2), m.Regroup)
    assert isinstance(rig.join("w0", step=2, last_round=1), m.Wait)
    round_ = rig.join("w1", step=1, last_round=1)
    assert isinstance(round_, m.Round) and (round_.round_id, round_.step, round_.source_rank) == (2, 2, 0)
    rig.next("w0", 2, round_id=2)
    rig.next("w1", 2, round_id=2)
    assert rig.done() == 16


def test_a_resumed_run_expects_nobody(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    rig.step(0)
    rig.restart(resumed=True)
    rig.alive = ()
    spawned = dict(rig.tick().spawn)
    assert set(spawned) == {"w0", "w1"}
    rig.join("w0", incarnation=spawned["w0"])
    round_ = rig.join("w1", incarnation=spawned["w1"])
    assert isinstance(round_, m.Round) and (round_.step, round_.source_rank) == (0, -1)
    assert rig.ledger.counts().todo == 32  # no checkpoint: from the seed, and all samples again


def test_rendezvous_adds_count_once_and_values_wait(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.begin()
    assert isinstance(rig.send(m.KvGet(1, "address")), m.Wait)
    rig.send(m.KvSet(1, "address", b"here"))
    assert rig.send(m.KvGet(1, "address")) == m.Value(b"here")
    for once in ("a", "a", "b"):
        last = rig.send(m.KvAdd(1, "n", 2, once))
    assert last == m.Value(b"4")


def test_plain_leases_are_repeated_once_and_late_reports_recognised(tmp_path: Path) -> None:
    rig = Rig(tmp_path, samples=10)
    first = rig.send(m.Lease("c", 1, 6))
    assert first == rig.send(m.Lease("c", 1, 6))
    assert isinstance(first, m.Leased) and first.ranges == ((0, 6),)
    rig.now += rig.spec.lease_s + 1
    rig.coordinator.tick(rig.now)
    again = rig.send(m.Lease("d", 1, 6))
    assert isinstance(again, m.Leased) and again.ranges == ((0, 6),)
    assert rig.send(m.Done("c", first.lease_id)) == m.DoneReply("late")
    assert rig.send(m.Done("d", again.lease_id)) == m.DoneReply("counted")
    assert rig.send(m.Done("d", again.lease_id)) == m.DoneReply("duplicate")
    rest = rig.send(m.Lease("d", 2, 6))
    assert isinstance(rest, m.Leased) and rest.ranges == ((6, 10),)
    assert isinstance(rig.send(m.Lease("c", 2, 6)), m.Wait)
    rig.send(m.Done("d", rest.lease_id))
    assert rig.send(m.Lease("c", 2, 6)) == m.Leased(-1, ())


def test_a_drill_kills_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path, drill=DrillConfig(kill="w1", at_progress=0.5))
    rig.begin()
    rig.step(0)
    assert rig.tick().kill == ()
    rig.step(1)
    assert rig.tick().kill == (("w1", 1),)
    orders = rig.tick(m.Exit("w1", 1, -9, "killed"))
    assert orders.kill == () and any("drill" in e["reason"] for e in rig.events.of("fault"))


def test_given_up_by_all_shows_the_error(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for turn in range(3):
        orders = rig.tick(after_s=1.0)
        assert len(orders.spawn) == 2
        rig.tick(*(m.Exit(w, i, 1, f"Traceback\nRuntimeError: no luck {turn}") for w, i in orders.spawn))
    orders = rig.tick()
    assert orders.outcome == "failed" and "no luck 2" in orders.error and orders.todo


@pytest.mark.parametrize("bound", [{"steps": 2}, {"budget_s": 0.5}])
def test_a_bounded_run_ends_at_its_bound_whoever_asks_first(tmp_path: Path, bound: dict[str, Any]) -> None:
    rig = Rig(tmp_path, pace=PaceConfig(batch=8, **bound))
    rig.begin()
    rig.step(0)
    rig.step(1)
    rig.now += 0.6
    for worker, reply in {w: rig.next(w, 2) for w in ("w0", "w1")}.items():
        save(rig, reply, worker)
    assert isinstance(rig.next("w0", 2), m.Stop)
    assert rig.tick().outcome == "finished" and rig.done() == 16


@pytest.mark.parametrize("pace", [PaceConfig(batch=8, steps=4), PaceConfig(batch=8)])
def test_schedules_do_not_depend_on_who_is_quicker(tmp_path: Path, pace: PaceConfig) -> None:
    rig = Rig(tmp_path, pace=pace)
    rig.begin()
    shares = []
    for step in range(4):
        order = rig.next("w0", step)
        rig.next("w1", step)
        assert isinstance(order, m.Order)
        shares.append(order.progress)
    assert shares == [0.0, 0.25, 0.5, 0.75]
