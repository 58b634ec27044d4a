"""Rows that are given up come out once: the state machine against a model."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shoestring.data.ranges import Range, RangeSet
from shoestring.fleet.verdicts import FIRST_ID, Verdicts, is_verdict

HOLDERS = st.sampled_from(["w0.1", "w1.1", "w1.2"])


class Model(RuleBasedStateMachine):
    """Dead positions are todo, with one holder, or written."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts = Verdicts()
        self.dead: set[int] = set()
        self.written: set[int] = set()
        self.open: dict[int, tuple[str, set[int]]] = {}
        self.numbers: set[int] = set()

    @rule(positions=st.sets(st.integers(0, 40)))
    def more_are_dead(self, positions: set[int]) -> None:
        new = self.verdicts.note(sorted(positions))
        assert len(new) == len(positions - self.dead)
        self.dead |= positions

    @rule(holder=HOLDERS, count=st.integers(1, 8))
    def lease(self, holder: str, count: int) -> None:
        todo = self.dead - self.written - {at for _, held in self.open.values() for at in held}
        lease = self.verdicts.lease(holder, count)
        if lease is None:
            assert not todo
            return
        held = {at for start, stop in lease.ranges for at in range(start, stop)}
        assert held == set(sorted(todo)[:count])
        assert is_verdict(lease.lease_id) and lease.lease_id not in self.numbers
        self.numbers.add(lease.lease_id)
        self.open[lease.lease_id] = (holder, held)

    @rule(number=st.integers(0, 12), holder=HOLDERS)
    def complete(self, number: int, holder: str) -> None:
        lease_id = FIRST_ID + number
        mine = lease_id in self.open and self.open[lease_id][0] == holder
        assert self.verdicts.complete(lease_id, holder) == mine
        if mine:
            self.written |= self.open.pop(lease_id)[1]

    @rule(number=st.integers(0, 12))
    def release(self, number: int) -> None:
        self.verdicts.release(FIRST_ID + number)
        self.open.pop(FIRST_ID + number, None)

    @rule()
    def the_coordinator_comes_back(self) -> None:
        written: list[Range] = list(RangeSet((at, at + 1) for at in self.written))
        self.verdicts = Verdicts(self.verdicts.snapshot(), written)
        self.verdicts.note(sorted(self.dead))

    @invariant()
    def what_is_pending_is_what_is_not_written(self) -> None:
        assert self.verdicts.pending == len(self.dead - self.written)
        assert {one.lease_id for one in self.verdicts.opened()} == set(self.open)


TestVerdicts: Any = Model.TestCase
TestVerdicts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
