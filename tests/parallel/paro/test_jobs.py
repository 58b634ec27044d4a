"""Chains of collectives: whatever ends first, each rank issues in the same order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.parallel.group import PeerLostError
from shoestring.parallel.paro.jobs import Chain, Jobs
from tests.parallel.paro.toys import Later

Issued = list[tuple[int, int]]


class Broken(Later):
    """Ends with an error."""

    def wait(self) -> None:
        """Raises."""
        raise PeerLostError("gone")


def chain(number: int, stages: int, issued: Issued, under_way: list[Later]) -> Chain:
    """`stages` collectives one after the other."""
    for stage in range(stages):
        issued.append((stage, number))
        pending = Later()
        under_way.append(pending)
        yield pending
        assert pending.over


def run(lengths: list[int], luck: list[int], keep: int) -> Issued:
    """Start chains of these lengths while `luck` says which collective ends next."""
    jobs, issued, under_way = Jobs(), list[tuple[int, int]](), list[Later]()
    fates = iter(luck)
    for number, stages in enumerate(lengths):
        jobs.start(chain(number, stages, issued, under_way))
        for fate in [next(fates, 0), next(fates, 0)]:
            if fate and under_way:
                under_way[fate % len(under_way)].over = True
            if fate % 2:
                jobs.poll()
        if next(fates, 0) % 3 == 0:
            jobs.drain(keep)
            assert len(jobs) <= keep
    jobs.drain(0)
    assert len(jobs) == 0
    return issued


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 99), max_size=24), st.integers(0, 3))
def test_each_stage_is_issued_in_the_order_of_the_chains(
    lengths: list[int], luck: list[int], keep: int
) -> None:
    """A stage has one scope, and the order inside a scope is what ranks must agree on."""
    issued = run(lengths, luck, keep)
    for stage in range(3):
        wanted = [number for number, stages in enumerate(lengths) if stages > stage]
        assert [number for at, number in issued if at == stage] == wanted
    for number, stages in enumerate(lengths):
        assert [stage for stage, one in issued if one == number] == list(range(stages))


def test_a_chain_goes_on_while_the_one_before_it_waits_and_not_beyond() -> None:
    jobs, issued, under_way = Jobs(), list[tuple[int, int]](), list[Later]()
    jobs.start(chain(0, 2, issued, under_way))
    jobs.start(chain(1, 2, issued, under_way))
    assert issued == [(0, 0), (0, 1)]
    under_way[1].over = True
    jobs.poll()
    assert issued == [(0, 0), (0, 1)]  # the second may not overtake
    under_way[0].over = True
    jobs.poll()
    assert issued == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_lost_peer_is_told_and_forgotten() -> None:
    def broken() -> Chain:
        yield Broken()

    jobs = Jobs()
    jobs.start(broken())
    with pytest.raises(PeerLostError):
        jobs.drain(0)
    jobs.clear()
    jobs.drain(0)
    assert len(jobs) == 0
