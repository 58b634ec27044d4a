"""Which state living workers hold together: never more than is there, held against every cell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.cluster.strategies import (
    BUILT,
    Layout,
    Strategy,
    all_strategies,
    equal_groups,
    leftover,
    parse_strategy,
)
from shoestring.fleet.holdings import newest_cut_state
from shoestring.fleet.messages import Held

Worker = tuple[int, Held | None]
FINEST = 12  # elements of each rank's finest shard


def elements(letter: str, layout: Layout, rank: int) -> set[int]:
    """Of a tensor of FINEST n elements, what a rank holds; by position, not by the product's arithmetic."""
    whole = list(range(FINEST * layout.size))
    if letter == "N":
        return set(whole)
    group = next(group for group in layout.groups if rank in group)
    share = len(whole) // len(group)
    start = group.index(rank) * share
    shard = whole[start : start + share]
    if letter == "I":
        return set(shard)
    width, place = len(shard) // len(layout.groups), layout.groups.index(group)
    return set(shard[place * width : (place + 1) * width])


@st.composite
def cut_states(draw: st.DrawFn) -> tuple[Strategy, Layout, list[int], list[int]]:
    size = draw(st.integers(1, 3))
    layout = equal_groups(size * draw(st.integers(1, 3)), size)
    alive = sorted(draw(st.sets(st.integers(0, layout.size - 1))))
    synced = [rank for rank in alive if draw(st.booleans())]
    return draw(st.sampled_from(all_strategies())), layout, alive, synced


@given(cut_states())
def test_leftover_is_what_ranks_hold(case: tuple[Strategy, Layout, list[int], list[int]]) -> None:
    strategy, layout, alive, synced = case
    found = leftover(strategy, layout, alive, synced)
    states = set().union(*(elements(strategy.states, layout, rank) for rank in alive))
    parameters = set().union(*(elements(strategy.parameters, layout, rank) for rank in synced))
    total = FINEST * layout.size
    assert found.states * total == len(states)
    assert found.parameters * total == len(parameters)
    assert found.masters_from_parameters * total == len(parameters - states)
    assert found.complete == (len(states) == total)
    assert found.usable == (len(states | parameters) == total)


@given(cut_states(), st.data())
def test_more_ranks_never_leave_less(
    case: tuple[Strategy, Layout, list[int], list[int]], data: st.DataObject
) -> None:
    strategy, layout, alive, synced = case
    fewer = [rank for rank in alive if data.draw(st.booleans())]
    less = leftover(strategy, layout, fewer, [rank for rank in synced if rank in fewer])
    more = leftover(strategy, layout, alive, synced)
    assert less.states <= more.states and less.parameters <= more.parameters
    assert more.complete >= less.complete and more.usable >= less.usable


@st.composite
def fleets(draw: st.DrawFn) -> list[Worker]:
    """Workers of up to two rounds, some without shards, steps near one another."""
    workers: list[Worker] = []
    for round_id in range(draw(st.integers(1, 2))):
        size = draw(st.integers(1, 2))
        layout = equal_groups(size * draw(st.integers(1, 2)), size)
        strategy = draw(st.sampled_from([name for name in BUILT if name[2] != "N"]))
        step = draw(st.integers(0, 3))
        for rank in range(layout.size):
            applied = step + draw(st.integers(0, 1))
            ready = draw(st.sampled_from([-1, applied + 1]))
            synced = draw(st.sampled_from([-1, applied]))
            held = Held(strategy, layout.groups, rank, round_id, ready, synced)
            fate = draw(st.integers(0, 3))
            if fate:
                workers.append((applied, held))
            elif draw(st.booleans()):
                workers.append((applied, None))
    return draw(st.permutations(workers))


def possible(workers: list[Worker], step: int, whole: bool) -> bool:
    """Whether some round's workers hold all masters of a step that one of them has applied.

    Args:
        whole: from states alone, so that moments are there, too.
    """
    for round_id in {held.round_id for _, held in workers if held is not None}:
        members = [(at, held) for at, held in workers if held is not None and held.round_id == round_id]
        if all(at != step for at, _ in members):
            continue
        there: set[int] = set()
        total = 0
        for at, held in members:
            strategy, layout = parse_strategy(held.strategy), Layout(held.groups)
            total = FINEST * layout.size
            if step in (at, held.ready):
                there |= elements(strategy.states, layout, held.rank)
                if held.synced == step and not whole:
                    there |= elements(strategy.parameters, layout, held.rank)
        if len(there) == total:
            return True
    return False


@given(fleets(), st.integers(-1, 4))
def test_the_newest_state_is_the_newest_that_is_all_there(workers: list[Worker], confirmed: int) -> None:
    found = newest_cut_state(workers, confirmed)
    steps = [s for s in range(max(confirmed, 0), 9) if possible(workers, s, whole=False)]
    assert found.step == max(steps, default=-1)
    assert found.usable == bool(steps) == bool(found.sources)
    assert found.reason
    if found.usable:
        assert found.step >= confirmed
        sources = [workers[number] for number in sorted(found.sources)]
        assert len({held.round_id for _, held in sources if held is not None}) == 1
        assert possible(sources, found.step, whole=False)
        assert found.complete == possible(sources, found.step, whole=True)


@given(fleets(), st.integers(-1, 4), st.data())
def test_a_worker_more_never_makes_the_state_older(
    workers: list[Worker], confirmed: int, data: st.DataObject
) -> None:
    fewer = [worker for worker in workers if data.draw(st.booleans())]
    assert newest_cut_state(fewer, confirmed).step <= newest_cut_state(workers, confirmed).step


def test_the_other_group_stands_in_for_a_lost_rank() -> None:
    layout = equal_groups(4, 2)

    def without(lost: int, strategy: str, synced: int) -> list[Worker]:
        return [
            (7, None if rank == lost else Held(strategy, layout.groups, rank, 2, -1, synced))
            for rank in range(4)
        ]

    whole = newest_cut_state(without(3, "NII", -1), 7)
    assert (whole.step, whole.complete) == (7, True)
    bridged = newest_cut_state(without(3, "IIG", 7), 7)
    assert (bridged.step, bridged.complete) == (7, False)
    assert "25%" in bridged.reason
    for strategy, synced in (("IIG", -1), ("IIG", 6), ("GGG", 7)):
        gone = newest_cut_state(without(3, strategy, synced), 7)
        assert (gone.step, gone.sources) == (-1, frozenset())
        assert "with nobody" in gone.reason
    assert newest_cut_state(without(3, "NII", 7), 8).step == -1  # older than what was confirmed
    assert newest_cut_state([(7, None)] * 4, 0).step == -1
