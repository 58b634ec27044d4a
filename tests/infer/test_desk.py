"""What is said to the coordinator: in order, again after no answer, and never in the way of work."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shoestring.base.clock import FakeClock, SystemClock
from shoestring.base.errors import FleetError
from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m
from shoestring.fleet.shard_messages import PoolChange
from shoestring.infer.desk import BackDesk, Desk, News, Over, Settled, State
from tests.infer.fake_seat import FakeSeat

STATE = State((), 0, "")


def test_what_gets_no_answer_is_said_again_in_order_after_a_pause() -> None:
    clock, seat = FakeClock(10.0), FakeSeat(30, 10)
    desk = Desk(seat, clock)
    shards = [one for one in desk.turn(2, STATE) if isinstance(one, m.Shard)]
    assert [one.lease_id for one in shards] == [1, 2]
    seat.away = True
    desk.done(1, Staged("x", 10))
    desk.give_back(2, "leaving")
    assert desk.turn(0, STATE) == [] and desk.waiting == 2 and desk.staged == 1
    seat.away = False
    assert desk.turn(0, STATE) == [], "it is too soon"
    clock.advance(0.2)
    assert desk.turn(0, STATE) == [Settled(1, Staged("x", 10), "counted")]
    assert seat.backs == [(2, "leaving")] and not desk.waiting


def test_decisions_and_faults_are_told_once_a_second_or_in_a_hurry() -> None:
    clock, seat = FakeClock(10.0), FakeSeat(30, 10)
    desk = Desk(seat, clock)
    assert m.ShardOrders() in desk.turn(0, STATE)
    desk.fault("a process died")
    desk.changed(PoolChange("resize", "a", "slow"))
    assert desk.turn(0, STATE) == [] and desk.untold
    desk.hurry()
    assert desk.turn(0, STATE) == [m.ShardOrders()] and not desk.untold
    assert seat.faults == ["a process died"] and len(seat.changes) == 1
    seat.stopped = True
    assert desk.turn(1, STATE) == [Over("all rows are done")]


class SlowSeat(FakeSeat):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(100, 10)
        self.open = threading.Event()
        self.error: Exception | None = None

    def _reach(self) -> None:
        assert self.open.wait(60.0)
        if self.error is not None:
            raise self.error


def until(desk: BackDesk, wanted: int = 0) -> list[News]:
    """The next news."""
    clock = SystemClock()
    end_s = clock.now() + 60.0
    while not (news := desk.turn(wanted, STATE)):
        assert clock.now() < end_s
        clock.sleep(0.001)
    return news


def test_a_slow_coordinator_keeps_nobody_waiting() -> None:
    seat = SlowSeat()
    desk = BackDesk(Desk(seat, SystemClock()))
    assert desk.turn(1, STATE) == [] and desk.busy
    desk.done(7, Staged("x", 10))
    desk.fault("a process died")
    seat.leases[7] = ((0, 10),)
    assert desk.turn(1, STATE) == [] and (desk.waiting, desk.staged, desk.untold) == (1, 1, True)
    seat.open.set()
    first = until(desk, 1)
    assert any(isinstance(one, m.Shard) for one in first)
    assert until(desk)[0] == Settled(7, Staged("x", 10), "counted") and not desk.waiting
    desk.hurry()
    until(desk)
    assert seat.faults == ["a process died"] and not desk.untold
    desk.close()


@pytest.mark.parametrize("error", [FleetError("refused", "go")])
def test_what_the_seat_raises_is_raised_here(error: Any) -> None:
    seat = SlowSeat()
    seat.error = error
    seat.open.set()
    desk = BackDesk(Desk(seat, SystemClock()))
    with pytest.raises(FleetError, match="refused"):
        until(desk, 1)
    desk.close()
