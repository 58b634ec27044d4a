"""A worker's seat in a job over rows, over a line that loses messages and answers."""

from __future__ import annotations

import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import FleetError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.seat import DismissedError
from shoestring.fleet.shard_messages import PoolChange
from shoestring.fleet.shard_seat import ShardSeat
from tests.fleet.shard_rig import ShardRig, positions


class Line:
    """A channel to a rig's coordinator, through bytes; the next calls meet these fates."""

    def __init__(self, rig: ShardRig, clock: FakeClock) -> None:
        self._rig, self._clock = rig, clock
        self.fates: list[str] = []
        self.calls = 0

    def call(self, request: m.Request) -> m.Reply:
        self.calls += 1
        fate = self.fates.pop(0) if self.fates else ""
        if fate != "lost":
            self._rig.now = self._clock.now()
            reply = m.decode_reply(m.encode(self._rig.send(m.decode_request(m.encode(request)))))
        if fate:
            raise TransportError(f"{fate}", "send it again")
        return reply

    def close(self) -> None:
        """Nothing to close."""


def seated(rows: int = 30) -> tuple[ShardSeat, Line, ShardRig, FakeClock]:
    rig, clock = ShardRig(rows), FakeClock()
    rig.tick()
    line = Line(rig, clock)
    config = MemberConfig(hang_timeout_s=300.0, start_timeout_s=120.0)
    return ShardSeat("w0", 1, lambda: line, clock, config), line, rig, clock


def test_lost_messages_and_answers_change_nothing() -> None:
    seat, line, rig, _ = seated()
    for fate in ("lost", "unanswered"):
        line.fates = [fate]
        with pytest.raises(TransportError):
            seat.lease()
    shard = seat.lease()
    assert isinstance(shard, m.Shard) and positions(shard) == list(range(10))
    assert rig.ledger.counts().doing == 10
    staged = rig.stage("w0", shard)
    line.fates = ["unanswered"]
    with pytest.raises(TransportError):
        seat.done(shard.lease_id, staged)
    assert seat.done(shard.lease_id, staged) == "duplicate" and rig.ledger.counts().done == 10
    other = seat.lease()
    assert isinstance(other, m.Shard) and other.lease_id != shard.lease_id
    seat.give_back(other.lease_id, "told to leave")
    assert rig.ledger.counts().doing == 0


def test_between_two_questions_for_rows_that_are_not_there_is_a_pause() -> None:
    seat, line, rig, clock = seated(10)
    shard = seat.lease()
    assert isinstance(shard, m.Shard)
    calls = line.calls
    assert seat.lease() is None and seat.lease() is None and line.calls == calls + 1
    clock.sleep(1.0)
    assert seat.lease() is None and line.calls == calls + 2
    seat.done(shard.lease_id, rig.stage("w0", shard))
    clock.sleep(1.0)
    assert isinstance(seat.lease(), m.Stop)
    calls = line.calls
    assert isinstance(seat.lease(), m.Stop) and line.calls == calls


def test_changes_and_faults_are_told_until_they_arrive_and_once() -> None:
    seat, line, rig, _ = seated()
    change = PoolChange("resize", "load", "it is the bottleneck")
    for fate in ("lost", "unanswered"):
        line.fates = [fate]
        with pytest.raises(TransportError):
            seat.tell(changes=(change,) if fate == "lost" else (), faults=(f"loader died, {fate}",))
    assert seat.tell() == m.ShardOrders()
    assert seat.tell(changes=(change,)) == m.ShardOrders()
    assert [event["action"] for event in rig.events.of("decision")] == ["resize", "resize"]
    faults = [event["reason"] for event in rig.events.of("fault")]
    assert faults == ["loader died, lost", "loader died, unanswered"]


def test_a_bug_ends_the_job_and_who_asks_then_is_told() -> None:
    seat, _, rig, _ = seated()
    shard = seat.lease()
    assert isinstance(shard, m.Shard)
    seat.broken("ZeroDivisionError", "mend the stage")
    assert rig.tick().error == "ZeroDivisionError"
    assert seat.tell().leave_s == 0.0 and isinstance(seat.lease(), m.Stop)
    short = rig.sink.stage("short", {})
    with pytest.raises(DismissedError, match="the job is over"):
        seat.done(shard.lease_id, short)


def test_a_process_that_was_replaced_is_dismissed() -> None:
    seat, _, rig, _ = seated()
    shard = seat.lease()
    assert isinstance(shard, m.Shard)
    seat.crashed("out of luck")
    assert seat.done(shard.lease_id, rig.stage("w0", shard)) == "late"
    with pytest.raises(DismissedError):
        seat.lease()


def test_a_coordinator_that_never_comes_back_ends_the_worker_with_advice() -> None:
    seat, line, _, clock = seated()
    line.fates = ["lost"] * 1000
    with pytest.raises(FleetError, match="cannot reach the coordinator") as caught:
        for _ in range(1000):
            clock.sleep(1.0)
            try:
                seat.tell()
            except TransportError:
                continue
    assert not isinstance(caught.value, TransportError)
    assert 420.0 <= clock.now() <= 423.0 and 420.0 <= seat.silent_s <= 423.0
