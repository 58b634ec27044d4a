"""Spans of a cache: never two owners of a block, and waiting only where there is no room."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoestring.infer.segments import Segments, Span


def test_it_extends_appends_and_waits() -> None:
    segments = Segments(10)
    assert segments.take(1, 2, 3) == Span(0, 3)
    assert segments.take(2, 2, 2) == Span(3, 2)
    grown = segments.grow(2, 3, 4)
    assert (grown.how, grown.span, grown.old) == ("extend", Span(3, 4), Span(3, 2))
    assert segments.grow(1, 4, 4).how == "wait", "3 free blocks at the end and 3 of its own do not adjoin"
    segments.give(2)
    assert segments.take(3, 1, 1) == Span(3, 1)
    grown = segments.grow(1, 4, 5)
    assert (grown.how, grown.span) == ("append", Span(4, 5))
    assert segments.span(1) == Span(4, 5) and segments.free() == [Span(0, 3), Span(9, 1)]
    assert segments.take(4, 4, 9) is None
    assert segments.take(4, 2, 9) == Span(0, 3), "less than the wish is taken where it is enough"


def test_a_move_may_overlap_what_it_leaves() -> None:
    segments = Segments(8)
    segments.take(1, 3, 3)
    segments.take(2, 3, 3)
    segments.take(3, 2, 2)
    segments.give(1)
    grown = segments.grow(2, 6, 6)
    assert (grown.how, grown.span, grown.old) == ("append", Span(0, 6), Span(3, 3))


class Cache(RuleBasedStateMachine):
    """Sequences come, grow and go at will, beside a list of who owns what, block by block."""

    @initialize(blocks=st.integers(1, 40))
    def begin(self, blocks: int) -> None:
        self.segments = Segments(blocks)
        self.owned: dict[int, Span] = {}
        self.number = 0

    def longest_run(self, without: int = -1) -> int:
        """Found the slow way: block by block."""
        taken = {b for one, s in self.owned.items() if one != without for b in range(s.start, s.end)}
        longest = run = 0
        for block in range(self.segments.blocks):
            run = 0 if block in taken else run + 1
            longest = max(longest, run)
        return longest

    @rule(need=st.integers(1, 20), more=st.integers(0, 10))
    def take(self, need: int, more: int) -> None:
        room = self.longest_run()
        span = self.segments.take(self.number, need, need + more)
        assert (span is None) == (room < need)
        if span is not None:
            assert need <= span.blocks <= need + more
            self.owned[self.number] = span
        self.number += 1

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), extra=st.integers(1, 20), more=st.integers(0, 10))
    def grow(self, data: st.DataObject, extra: int, more: int) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owned)))
        old = self.owned[owner]
        need = old.blocks + extra
        room = self.longest_run(without=owner)
        growth = self.segments.grow(owner, need, need + more)
        assert growth.old == old
        assert (growth.how == "wait") == (room < need)
        assert growth.how == "wait" or need <= growth.span.blocks <= need + more
        assert growth.how != "extend" or growth.span.start == old.start
        assert growth.how != "wait" or growth.span == old
        self.owned[owner] = growth.span

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        owner = data.draw(st.sampled_from(sorted(self.owned)))
        assert self.segments.give(owner) == self.owned.pop(owner)

    @invariant()
    def nobody_shares_a_block(self) -> None:
        blocks = [b for span in self.owned.values() for b in range(span.start, span.end)]
        free = sum(run.blocks for run in self.segments.free())
        assert len(blocks) == len(set(blocks)) == self.segments.blocks - free
        assert all(0 <= block < self.segments.blocks for block in blocks)
        assert {one: self.segments.span(one) for one in self.owned} == self.owned
        free = [b for run in self.segments.free() for b in range(run.start, run.end)]
        assert sorted(blocks + free) == list(range(self.segments.blocks))


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
