"""The coordinator of jobs over rows by hand: every message sent by the test, time from a fake clock."""

from __future__ import annotations

import pytest

from shoestring.base.errors import LedgerError
from shoestring.fleet import messages as m
from shoestring.fleet.job_status import PoolShown
from shoestring.fleet.shard_messages import PoolChange
from tests.fleet.shard_rig import Died, ShardRig, positions


def begun(rows: int = 100, **changes: object) -> ShardRig:
    rig = ShardRig(rows, **changes)  # type: ignore[arg-type]
    rig.tick()
    return rig


def test_all_rows_are_handed_out_once_published_and_said_to_be_complete() -> None:
    rig = begun(95)
    first, second = rig.shard("w0"), rig.shard("w1")
    assert positions(first) == list(range(10)) and positions(second) == list(range(10, 20))
    assert rig.done("w0", first, failures={3: "decode"}) == "counted"
    assert list(rig.sink.published) == ["part-000000000000-000001.parquet"]
    assert rig.done("w1", second) == "counted"
    rig.work_off("w0", "w1")
    assert rig.sink.rows() == [(at, "decode" if at == 3 else "") for at in range(95)]
    assert rig.sink.finished is not None
    assert (rig.sink.finished["rows"], rig.sink.finished["errors"]) == (95, {"decode": 1})
    assert isinstance(rig.lease("w0", 2000), m.Stop) and rig.tick().outcome == "finished"
    (summary,) = rig.events.of("summary")
    assert (summary["rows"], summary["failed"], summary["lost_rows"]) == (95, 1, 0)


def test_a_repeated_question_gets_the_same_shard_also_from_the_next_coordinator() -> None:
    rig = begun()
    shard = rig.shard("w0")
    assert rig.lease("w0") == shard
    rig.restart()
    assert rig.lease("w0") == shard
    rig.done("w0", shard)
    assert isinstance(rig.lease("w0"), m.Wait)  # a late copy, which nobody waits for
    other = rig.shard("w0", 2)
    assert isinstance(rig.lease("w0", 1), m.Wait) and rig.lease("w0", 2) == other
    assert rig.ledger.counts().doing == 10


def test_what_was_counted_is_a_duplicate_for_ever_and_what_was_lost_is_late() -> None:
    rig = begun()
    shard, other = rig.shard("w0"), rig.shard("w1")
    staged = rig.stage("w0", shard)
    assert [rig.report("w0", shard, staged) for _ in range(2)] == ["counted", "duplicate"]
    rig.restart()
    assert rig.report("w0", shard, staged) == "duplicate"
    rig.tick(m.Exit("w1", 1, -9, "killed"))
    assert rig.report("w1", other, rig.stage("w1", other)) == "late"
    assert rig.report("w0", other, rig.stage("w0", other)) == "late"  # somebody else's never counts
    assert rig.ledger.counts().done == 10 and len(rig.sink.published) == 1


def test_a_file_without_all_rows_fails_the_job_and_counts_nothing() -> None:
    rig = begun()
    shard = rig.shard("w0")
    staged = rig.sink.stage("short", {0: ""})
    assert isinstance(rig.send(m.ShardDone("w0", 1, shard.lease_id, staged)), m.Stop)
    orders = rig.tick()
    assert orders.outcome == "failed" and "10 rows" in orders.error and rig.ledger.counts().done == 0


def test_a_dead_workers_shards_go_to_others() -> None:
    rig = begun()
    shard = rig.shard("w0")
    rig.shard("w0", 2)
    rig.tick(m.Exit("w0", 1, -9, "killed by SIGKILL"))
    again = rig.shard("w1")
    assert again.ranges == shard.ranges
    assert rig.tick(after_s=0.2).spawn == (("w0", 2),)
    assert isinstance(rig.lease("w0", 3), m.Dismissed)  # the process that was declared dead
    rig.work_off("w1", request=5)
    assert rig.tick().outcome == "" and rig.done("w1", again) == "counted"
    assert rig.tick().outcome == "finished" and [at for at, _ in rig.sink.rows()] == list(range(100))
    assert rig.events.of("fault")[0]["worker"] == "w0"


def test_a_silent_worker_is_killed_and_a_stall_of_our_own_is_nobodys_fault() -> None:
    rig = begun()
    for worker in ("w0", "w1"):
        rig.shard(worker)
    rig.wait(100.0, "w0", "w1")
    assert rig.ledger.counts().doing == 20  # longer than a lease lasts, but they gave signs of life
    assert rig.tick(after_s=200.0).kill == ()
    assert rig.ledger.counts().doing == 20
    rig.wait(12.0, "w0")
    orders = rig.tick()
    assert orders.kill == (("w1", 1),)
    rig.tick(m.Exit("w1", 1, -9))
    assert rig.ledger.counts().doing == 10
    assert "silent" in rig.events.of("fault")[0]["reason"]


def test_a_row_that_kills_its_worker_comes_out_with_a_verdict_and_its_neighbours_without() -> None:
    rig = begun(40, workers=2, max_error_share=0.1, min_errors=1)
    incarnations = {"w0": 1, "w1": 1}
    deaths = 0
    for request in range(1, 400):
        for worker, incarnation in incarnations.items():
            if (worker, incarnation) not in rig.alive:
                continue
            reply = rig.lease(worker, request, incarnation)
            if isinstance(reply, m.Stop):
                break
            if not isinstance(reply, m.Shard):
                continue
            if 13 in positions(reply) and not reply.verdicts:
                deaths += 1
                rig.tick(m.Exit(worker, incarnation, -9, "killed by SIGKILL"))
                incarnations[worker] += 1
            else:
                assert rig.done(worker, reply, incarnation) == "counted"
        rig.tick(after_s=1.0)
    assert rig.tick().outcome == "finished"
    rows = rig.sink.rows()
    assert [at for at, _ in rows] == list(range(40))
    assert [at for at, error in rows if error] == [13] and "lost with" in rows[13][1]
    assert deaths >= 5
    assert any("given up" in event["reason"] for event in rig.events.of("fault"))


def test_a_suspect_is_worked_on_with_nothing_beside_it() -> None:
    rig = begun(30, workers=1)
    for incarnation in (1, 2):
        assert positions(rig.shard("w0", 1, incarnation)) == list(range(10))
        rig.tick(m.Exit("w0", incarnation, -9, "killed by SIGKILL"))
        rig.tick(after_s=5.0)
    assert positions(rig.shard("w0", 1, 3)) == list(range(5))  # a half of what was lost twice
    assert isinstance(rig.lease("w0", 2, 3), m.Wait)
    rig.restart()
    assert isinstance(rig.lease("w0", 2, 3), m.Wait)
    assert rig.done("w0", m.Shard(3, ((0, 5),)), 3) == "counted"
    assert positions(rig.shard("w0", 2, 3)) == list(range(5, 10))


def test_verdicts_survive_the_coordinator_and_the_loss_of_their_writer() -> None:
    rig = begun(1, shard_rows=1, workers=1)
    for incarnation in (1, 2):
        rig.shard("w0", 1, incarnation)
        rig.tick(m.Exit("w0", incarnation, -9, "killed"))
        rig.tick(after_s=5.0)
    verdict = rig.shard("w0", 1, 3)
    assert set(verdict.verdicts) == {0}
    rig.restart()
    assert rig.lease("w0", 1, 3) == verdict
    rig.tick(m.Exit("w0", 3, -9, "killed"))
    rig.tick(after_s=5.0)
    again = rig.shard("w0", 1, 4)
    assert again.lease_id != verdict.lease_id and again.verdicts == verdict.verdicts
    assert rig.done("w0", verdict, 3) == "late"
    staged = rig.stage("w0", again)
    assert [rig.report("w0", again, staged, 4) for _ in range(2)] == ["counted", "duplicate"]
    assert rig.tick().outcome == "finished" and len(rig.sink.rows()) == 1
    rig.restart(resumed=True)
    assert rig.tick().outcome == "finished" and len(rig.sink.rows()) == 1


def test_a_worker_that_dies_before_it_has_any_rows_is_given_up() -> None:
    rig = ShardRig(workers=1)
    for incarnation in (1, 2, 3):
        orders = rig.tick(after_s=5.0)
        assert orders.spawn == (("w0", incarnation),)
        rig.tick(m.Exit("w0", incarnation, 1, "ImportError: no module named stage"))
    orders = rig.tick()
    assert orders.outcome == "failed" and "no module named stage" in orders.error and orders.todo


def test_evictions_do_not_end_a_job_that_gets_on() -> None:
    rig = ShardRig(rows=200, workers=1)
    for incarnation in range(1, 11):
        rig.tick(after_s=60.0)
        shard = rig.shard("w0", 1, incarnation)
        rig.shard("w0", 2, incarnation)
        assert rig.done("w0", shard, incarnation) == "counted"
        rig.tick(m.Exit("w0", incarnation, -9, "killed by SIGKILL"))
    assert rig.tick(after_s=60.0).outcome == "" and rig.ledger.counts().done == 100


def test_too_many_errors_fail_the_job_with_their_kinds_and_again_until_more_are_allowed() -> None:
    rig = begun(100, max_error_share=0.05, min_errors=2)
    failures = {at: "too large" if at % 2 else "decode" for at in range(6)}
    rig.done("w0", rig.shard("w0"), failures=failures)
    orders = rig.tick()
    assert orders.outcome == "failed"
    assert "6 of 100 rows" in orders.error and "decode: 3; too large: 3" in orders.error
    assert "max_error_share" in orders.todo
    assert isinstance(rig.lease("w1"), m.Stop) and rig.tell("w1").leave_s == 0.0
    rig.restart(resumed=True)
    assert rig.tick().outcome == "failed"
    rig.outputs = rig.outputs.__class__(rig.outputs.sink, "job", 10, max_error_share=0.06)
    rig.restart(resumed=True)
    orders = rig.tick()
    assert orders.outcome == "" and len(orders.spawn) == 2


def test_a_few_errors_are_borne() -> None:
    rig = begun(20, max_error_share=0.0, min_errors=2)
    rig.done("w0", rig.shard("w0"), failures={0: "decode", 1: "decode"})
    rig.work_off("w0")
    assert rig.tick().outcome == "finished"


def test_a_bug_in_user_code_fails_the_job_at_once() -> None:
    rig = begun()
    shard = rig.shard("w0")
    rig.send(m.JobBroken("w0", 7, "of another process", ""))
    assert rig.tick().outcome == ""
    assert rig.send(m.JobBroken("w0", 1, "ZeroDivisionError in row 3", "mend stage.py")) == m.Ack()
    orders = rig.tick()
    assert (orders.outcome, orders.error, orders.todo) == (
        "failed", "ZeroDivisionError in row 3", "mend stage.py",
    )  # fmt: skip
    assert rig.done("w0", shard) == "counted"  # what is done is done


def test_a_sink_that_cannot_be_written_fails_the_job_and_the_next_start_publishes() -> None:
    rig = begun()
    shard = rig.shard("w0")
    rig.sink.broken = "the sink is full"
    assert rig.done("w0", shard) == "counted"
    orders = rig.tick()
    assert orders.outcome == "failed" and "full" in orders.error and "space" in orders.todo
    rig.sink.broken = ""
    rig.restart(resumed=True)
    assert len(rig.sink.published) == 1
    assert rig.events.of("decision")[-1]["action"] == "recover"


def test_a_coordinator_that_dies_between_commit_and_publishing_loses_nothing() -> None:
    rig = begun()
    shard = rig.shard("w0")
    staged = rig.stage("w0", shard)
    rig.sink.die_at = 1
    with pytest.raises(Died):
        rig.report("w0", shard, staged)
    assert not rig.sink.published
    rig.restart()
    assert len(rig.sink.published) == 1 and rig.report("w0", shard, staged) == "duplicate"


def test_what_workers_have_staged_outlives_the_coordinator() -> None:
    rig = begun()
    shard = rig.shard("w0")
    staged = rig.stage("w0", shard)
    rig.restart()
    assert rig.report("w0", shard, staged) == "counted" and len(rig.sink.published) == 1
    rig.stage("w0", rig.shard("w0", 2))
    rig.restart(resumed=True)
    assert not rig.sink.staged  # nobody is left who could report it


def test_a_store_that_fails_lets_no_answer_out() -> None:
    rig = begun()
    shard = rig.shard("w0")
    rig.store.full = True
    with pytest.raises(LedgerError):
        rig.done("w0", shard)
    assert not rig.sink.published
    rig.store.full = False
    rig.restart()
    assert rig.done("w0", shard) == "counted"


def test_ctrl_c_lets_workers_finish_and_nobody_is_to_blame() -> None:
    rig = begun()
    shard, other = rig.shard("w0"), rig.shard("w1")
    assert rig.tell("w0") == m.ShardOrders()
    assert rig.tick(interrupt=True).outcome == ""
    orders = rig.tell("w0")
    assert 4.0 < orders.leave_s <= 5.0 and "interrupted" in orders.reason
    assert isinstance(rig.lease("w0", 2), m.Stop)
    assert rig.done("w0", shard) == "counted"
    rig.send(m.ShardBack("w1", 1, other.lease_id, "told to leave"))
    rig.tick(m.Exit("w0", 1, 0), interrupt=True)
    assert rig.tick(interrupt=True).outcome == ""
    orders = rig.tick(m.Exit("w1", 1, 0), interrupt=True)
    assert (orders.outcome, orders.spawn) == ("interrupted", ())
    assert rig.ledger.counts().todo == 90 and not rig.events.of("fault")
    rig.restart(resumed=True)
    rig.tick()
    rig.work_off("w0", "w1", incarnation=2)
    assert rig.tick().outcome == "finished" and len(rig.sink.rows()) == 100


def test_ctrl_c_does_not_wait_for_ever() -> None:
    rig = begun()
    rig.shard("w0")
    rig.tick(m.Exit("w1", 1, 0), interrupt=True)
    for _ in range(30):
        rig.send(m.Heartbeat("w0", 1, -1, "compute", 0.0))
        orders = rig.tick(interrupt=True, after_s=1.0)
    assert orders.kill == (("w0", 1),)
    assert rig.tick(m.Exit("w0", 1, -9), interrupt=True).outcome == "interrupted"
    rig.restart(resumed=True)
    rig.tick()
    rig.work_off("w0", "w1", incarnation=2)
    assert len(rig.sink.rows()) == 100


@pytest.mark.parametrize("by_worker", [True, False])
def test_a_worker_whose_machine_goes_away_leaves_and_is_replaced(by_worker: bool) -> None:
    rig = begun()
    shard = rig.shard("w1")
    if by_worker:
        orders = rig.tell("w1", notice="SIGTERM")
    else:
        rig.tick(notices=(("w1", "its host is to be drained"),))
        orders = rig.tell("w1")
    assert 4.0 < orders.leave_s <= 5.0 and orders.reason
    assert isinstance(rig.lease("w1", 2), m.Stop) and rig.tell("w0") == m.ShardOrders()
    rig.send(m.ShardBack("w1", 1, shard.lease_id, "told to leave"))
    assert rig.tick(m.Exit("w1", 1, 0)).spawn == (("w1", 2),)
    actions = [event["action"] for event in rig.events.of("decision")]
    assert actions == ["drain", "left"] and not rig.events.of("fault")
    assert rig.shard("w1", 1, 2).ranges == shard.ranges


def test_who_has_nothing_gets_what_others_have_not_begun() -> None:
    rig = begun(40)
    shards = [rig.shard("w0", request) for request in (1, 2, 3)]
    rig.work_off("w1")
    assert rig.tell("w0").give_back == 1
    (event,) = [event for event in rig.events.of("decision") if event["action"] == "give_back"]
    assert event["worker"] == "w0" and "w1" in event["reason"]
    rig.send(m.ShardBack("w0", 1, shards[2].lease_id, "not begun, others are idle"))
    assert isinstance(rig.lease("w0", 4), m.Wait)  # it is not for who gave it back
    assert positions(rig.shard("w1", 2000))[0] == positions(shards[2])[0]
    assert rig.tell("w0").give_back == 0


def test_shards_get_smaller_towards_the_end() -> None:
    rig = begun(1000, shard_rows=100)
    sizes = []
    for request in range(1, 7):
        shards = {worker: rig.shard(worker, request) for worker in ("w0", "w1")}
        sizes += [len(positions(shard)) for shard in shards.values()]
        assert [rig.done(worker, shard) for worker, shard in shards.items()] == ["counted"] * 2
    assert sizes[0] == 100 and sizes == sorted(sizes, reverse=True) and min(sizes) >= 12 and sizes[-1] < 50


def test_who_is_slow_gets_no_more_than_it_will_do_before_the_end() -> None:
    rig = begun(1000, shard_rows=100)
    slow = rig.shard("w1")
    for request in range(1, 5):
        rig.wait(1.0, "w0", "w1")
        assert rig.done("w0", rig.shard("w0", request)) == "counted"
    assert isinstance(rig.lease("w1", 2), m.Wait), "it has enough until the others are through"
    assert rig.done("w1", slow) == "counted"
    assert len(positions(rig.shard("w1", 3))) < 100 == len(positions(rig.shard("w0", 5)))


def test_more_workers_while_there_is_work_for_them() -> None:
    rig = ShardRig(1000, workers=1, max_workers=2)
    assert rig.tick().spawn == (("w0", 1),)
    rig.shard("w0")
    rig.tick()
    assert rig.tick().spawn == (("w1", 1),)
    unplaced = {"unplaced": (("w1", 1),)}
    for _ in range(100):
        rig.send(m.Heartbeat("w0", 1, -1, "compute", 0.0))
        assert rig.tick(after_s=1.0, **unplaced).kill == ()  # it waits for a machine with room
    (event,) = [event for event in rig.events.of("decision") if event["action"] == "add"]
    assert "w1" in event["reason"]
    (event,) = [event for event in rig.events.of("decision") if event["action"] == "wait"]
    assert event["workers"] == ["w1"] and "cores free" in event["reason"], "told once"


def test_a_worker_that_was_added_goes_on_counting_after_an_interruption() -> None:
    rig = ShardRig(1000, workers=1, max_workers=2)
    rig.tick()
    rig.shard("w0")
    rig.tick()
    rig.tick()
    for request in (1, 2):
        assert rig.done("w1", rig.shard("w1", request)) == "counted"
    rig.tick(interrupt=True)
    ended = (m.Exit("w0", 1, 0), m.Exit("w1", 1, 0))
    assert rig.tick(*ended, interrupt=True).outcome == "interrupted"
    rig.config = rig.config.model_copy(update={"members": rig.config.members.model_copy(
        update={"max_workers": 1}
    )})  # fmt: skip
    rig.restart(resumed=True)
    assert rig.tick().spawn == (("w0", 2),) and rig.tick(m.Exit("w0", 2, 0), interrupt=True).outcome
    rig.config = rig.config.model_copy(update={"members": rig.config.members.model_copy(
        update={"max_workers": 2}
    )})  # fmt: skip
    rig.restart(resumed=True)
    rig.tick()
    rig.shard("w0", 1, 3)
    rig.tick()
    assert rig.tick().spawn == (("w1", 2),)
    assert positions(rig.shard("w1", 1, 2)), "its first question is not taken for an old one"


def test_what_workers_tell_is_shown_and_recorded_once() -> None:
    rig = begun()
    pool = PoolShown("load", "load", 2, rows_per_s=50.0)
    stage = PoolShown("classify", "stage", 1, rows_per_s=20.0, restarts=1)
    change = PoolChange("resize", "load", "it is the bottleneck", {"processes": 2.0})
    rig.shard("w0")
    told = {"pools": (pool, stage), "changes": (change,), "faults": ("a loader died",), "begun": 30}
    rig.tell("w0", **told)
    rig.tell("w0", **told)  # its answer was lost
    later = PoolChange("batch", "classify", "there is memory", {"batch": 64.0})
    rig.tell("w0", pools=(pool, stage), changes=(change, later), faults=("a loader died",), begun=30)
    rig.tell("w0", pools=(pool, stage), changes_from=2, faults_from=1, begun=40)
    status = rig.tick(after_s=1.5).status
    assert status.job is not None and status.job.pools == {"w0": (pool, stage)}
    assert (status.job.begun, status.job.rows_per_s, status.job.eta_s) == (40, 20.0, 5.0)
    assert status.messages == ("it is the bottleneck", "a loader died", "there is memory")
    assert [event["action"] for event in rig.events.of("decision")] == ["resize", "batch"]
    assert [event["worker"] for event in rig.events.of("fault")] == ["w0"]
    (pools,) = rig.events.of("pools")
    assert (pools["worker"], [one["name"] for one in pools["pools"]]) == ("w0", ["load", "classify"])
    (event,) = rig.events.of("rows")
    assert (event["done"], event["begun"]) == (0, 40)


def test_progress_counts_committed_rows() -> None:
    rig = begun(100)
    rig.wait(9.0, "w0", "w1")
    rig.done("w0", rig.shard("w0"), failures={1: "decode"})
    status = rig.tick(after_s=1.0).status
    job = status.job
    assert job is not None and status.progress == 0.1 and status.done == 10 and status.todo == 90
    assert (job.done, job.failed, job.errors, job.shards) == (10, 1, {"decode": 1}, 1)
    assert 0.9 < job.rows_per_s < 1.1 and 80 < job.eta_s < 100
    assert status.workers["w0"]["state"] == "active" and status.workers["w1"]["state"] == "starting"


def test_a_request_that_means_nothing_here_is_refused() -> None:
    rig = begun()
    assert isinstance(rig.send(m.Join("w0", 1, -1)), m.Refused)
    assert rig.tick().outcome == ""
