"""How long a worker bears with a coordinator that says nothing."""

from __future__ import annotations

import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import FleetError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.seat import Seat


class Silence:
    """A channel to nobody, until `until_s`."""

    def __init__(self, clock: FakeClock, until_s: float) -> None:
        self._clock = clock
        self._until_s = until_s

    def call(self, request: m.Request) -> m.Reply:
        if self._clock.now() < self._until_s:
            raise TransportError("nobody is there", "try again")
        return m.Ack()

    def close(self) -> None:
        """Nothing to close."""


def seat(clock: FakeClock, silent_s: float) -> Seat:
    config = MemberConfig(hang_timeout_s=300.0, start_timeout_s=120.0)
    return Seat("w0", 1, lambda: Silence(clock, silent_s), clock, config)


def test_a_coordinator_that_is_taken_for_hung_and_replaced_is_waited_for() -> None:
    clock = FakeClock()
    seat(clock, silent_s=400.0).ready(1, 1, m.StepReport(8, 0.5, 0.0))
    assert 400.0 <= clock.now() < 401.0


def test_one_that_never_comes_back_ends_the_worker_with_advice() -> None:
    clock = FakeClock()
    with pytest.raises(FleetError, match="cannot reach the coordinator"):
        seat(clock, silent_s=1e9).ready(1, 1, m.StepReport(8, 0.5, 0.0))
    assert 420.0 <= clock.now() < 421.0
