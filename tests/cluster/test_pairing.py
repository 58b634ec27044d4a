"""Rounds are disjoint and complete; the paired check blames whom it should; shared cards are recognised."""

from __future__ import annotations

import pytest

from shoestring.cluster.pairing import (
    Check,
    all_pairs,
    card_test,
    compute_checks,
    cube_rounds,
    judge,
    link_checks,
    next_round,
    shares_card,
)

FAST, SLOW = 1e9, 5e7


@pytest.mark.parametrize("size", range(1, 18))
def test_all_pairs_meet_once_in_disjoint_rounds(size: int) -> None:
    rounds = all_pairs(size)
    met = [pair for pairs in rounds for pair in pairs]
    assert sorted(met) == [(i, j) for i in range(size) for j in range(i + 1, size)]
    assert len(rounds) == (0 if size == 1 else size - 1 + size % 2)
    assert all(len({rank for pair in pairs for rank in pair}) == 2 * len(pairs) for pairs in rounds)


@pytest.mark.parametrize("size", [2, 3, 17, 33, 64, 100])
def test_the_cube_connects_all_in_log_n_rounds(size: int) -> None:
    rounds = cube_rounds(size)
    assert len(rounds) == (size - 1).bit_length()
    reached, frontier = {0}, [0]
    while frontier:
        at = frontier.pop()
        near = {i + j - at for pairs in rounds for i, j in pairs if at in (i, j)} - reached
        reached |= near
        frontier += near
    assert len(reached) == size


def test_no_pair_is_asked_twice_and_all_rounds_are_disjoint() -> None:
    rates: dict[tuple[int, int], float] = {}
    done = 0
    while pairs := (plan := next_round(40, done, rates)).pairs:
        ranks = [rank for pair in pairs for rank in pair]
        assert len(ranks) == len(set(ranks)) and not set(pairs) & set(rates)
        rates |= {(i, j): FAST if i % 7 == j % 7 else SLOW for i, j in pairs}
        done += 1
    assert done <= 39 and plan.reason == "each two of 7 groups were compared"


NODES = ["a", "a", "b", "b", "c", "c"]


def rates_with(slow: set[int]) -> dict[tuple[int, int], float]:
    """Fast inside a node, a tenth between nodes; whatever touches a slow rank at a fifth of that."""
    return {
        (i, j): (FAST if NODES[i] == NODES[j] else FAST / 10) / (5 if {i, j} & slow else 1)
        for j in range(6)
        for i in range(j)
    }


def test_nobody_is_suspect_for_being_far_away() -> None:
    assert link_checks(NODES, rates_with(set())) == ()
    assert link_checks(["a", "b", "c", "c"], {(0, 1): SLOW, (2, 3): FAST, (0, 2): SLOW, (1, 3): SLOW}) == ()


def test_the_slowest_meets_the_fastest_beside_a_healthy_pair() -> None:
    checks = [check for check in link_checks(NODES, rates_with({2})) if check.suspect == 2]
    out = checks[-1]
    assert "to other nodes" in out.reason and "20% of the median" in out.reason
    assert NODES[out.partner] != "b" and 2 not in out.healthy
    assert NODES[out.healthy[0]] != NODES[out.healthy[1]]


def test_still_slow_with_the_fastest_means_the_node() -> None:
    check = Check(2, 0, (0, 4), "it was slow")
    assert judge(check, 20.0, 100.0).blame == "suspect"
    assert "20% of what is usual" in judge(check, 20.0, 100.0).reason
    assert judge(check, 95.0, 100.0).blame == "other"


def test_slow_compute_is_checked_with_the_fastest() -> None:
    assert compute_checks({0: 10.0, 1: 11.0, 2: 9.0}) == ()
    (check,) = compute_checks({0: 10.0, 1: 11.0, 2: 3.0, 5: 10.0})
    assert (check.suspect, check.partner) == (2, 1) and "30% of the median" in check.reason
    assert compute_checks({0: 1.0, 1: 10.0}) == (), "of two, nobody knows which is usual"


def test_the_fastest_pair_is_always_there_to_compare_with() -> None:
    (check,) = link_checks(["a", "b", "c"], {(0, 1): FAST, (1, 2): FAST / 100})
    assert (check.suspect, check.partner, check.healthy) == (2, 0, (0, 1))
    rates = {(0, 1): FAST, (2, 3): FAST, (0, 4): FAST / 50}
    (check,) = link_checks(["a", "b", "c", "d", "e"], rates | {(0, 1): FAST / 9, (1, 4): FAST / 60})[-1:]
    assert check.suspect == 4 and 4 not in check.healthy


def test_the_card_test_takes_two_workers_of_a_node_and_other_nodes() -> None:
    test = card_test(["a", "b", "b", "c"])
    assert test.pairs is not None
    (one, first), (two, second) = test.pairs
    assert (one, two) == (1, 2) and {first, second} == {0, 3}
    assert card_test(["a", "a"]).pairs is None and card_test(["a", "b", "c"]).pairs is None
    assert card_test(["a", "a", "b"]).pairs is None, "one partner cannot serve two at once"


def test_a_sum_that_stays_is_a_shared_card() -> None:
    assert shares_card([100.0, 100.0], [52.0, 49.0])[0]
    shared, reason = shares_card([100.0, 90.0], [97.0, 88.0])
    assert not shared and "1.95 times one alone" in reason
