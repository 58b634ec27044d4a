"""How large shards are, who gives some back, when a worker is added."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.fleet import shard_policy
from shoestring.fleet.shard_paces import Paces


@given(st.integers(1, 10_000), st.integers(1, 10**9), st.floats(0.001, 1.0))
def test_a_shard_is_never_empty_nor_larger_than_usual_nor_a_crumb(
    usual: int, todo: int, share: float
) -> None:
    rows = shard_policy.shard_rows(usual, todo, share)
    assert usual / shard_policy.SMALLEST <= rows <= usual and rows >= 1
    assert rows == usual or share < 1


def test_towards_the_end_two_shards_are_left_for_each_worker() -> None:
    assert shard_policy.shard_rows(100, 10_000, 0.25) == 100
    assert shard_policy.shard_rows(100, 400, 0.25) == 50
    assert shard_policy.shard_rows(100, 400, 0.08) == 16, "a slow one gets less"
    assert shard_policy.shard_rows(100, 8, 0.25) == 13


def test_who_is_slow_holds_no_more_than_its_part_of_the_rest() -> None:
    assert shard_policy.may_hold(0, 100, 1, 0.01), "one can always be had"
    assert shard_policy.may_hold(2, 100, 1000, 0.2) and not shard_policy.may_hold(3, 100, 1000, 0.2)
    assert shard_policy.may_hold(9, 100, 1, 1.0), "who is alone leaves it to nobody"


def test_shares_follow_what_counts_and_who_takes_long() -> None:
    paces, workers = Paces(), [("w0", 1), ("w1", 1), ("w2", 1)]
    share = {one: paces.share(0.0, one, [other for other in workers if other != one], 100) for one in workers}
    assert set(share.values()) == {1 / 3}, "nothing is known"
    for one in workers:
        paces.began(0.0, *one)
    assert paces.share(0.5, workers[0], workers[1:], 100) == 1 / 3
    for now in (1.0, 2.0, 3.0, 4.0):
        for one in workers[:2]:
            paces.counted(now, *one, 100)
    slow = paces.share(4.0, workers[2], workers[:2], 100)
    assert slow == pytest.approx(25 / 225), "a shard in hand for 4 s: 25 rows a second at the most"
    paces.counted(8.0, *workers[2], 100)
    assert paces.share(8.0, workers[2], workers[:2], 100) == pytest.approx(12.5 / 112.5)
    fresh = ("w3", 1)
    assert paces.share(8.0, fresh, workers, 100) == pytest.approx(0.25), "one that is new counts as usual"


def test_a_shard_whose_beginning_nobody_knows_tells_no_pace() -> None:
    paces, workers = Paces(), [("w0", 1), ("w1", 1)]
    paces.counted(10.0, *workers[0], 100)  # the coordinator came back a moment before
    assert paces.share(10.1, workers[0], workers[1:], 100) == 0.5
    paces.counted(11.0, *workers[0], 100)
    assert paces.share(11.0, workers[1], workers[:1], 100) == 0.5


def test_what_is_long_ago_is_forgotten() -> None:
    paces, workers = Paces(), [("w0", 1), ("w1", 1)]
    for one in workers:
        paces.began(0.0, *one)
    for step in range(1, 2001):
        for one, rows in zip(workers, (100, 100 if step < 1000 else 10), strict=True):
            paces.counted(float(step), *one, rows)
    assert paces.share(2000.0, workers[1], workers[:1], 100) == pytest.approx(1 / 11, rel=0.05)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 6)),
    st.lists(st.sampled_from("uvwxyz"), unique=True),
)
def test_nobody_gives_back_its_last_and_nobody_more_than_is_wanted(
    held: dict[str, int], idle: list[str]
) -> None:
    wanted, reason = shard_policy.give_back(held, idle)
    assert all(0 < count < held[name] for name, count in wanted.items())
    spare = sum(max(0, count - 1) for count in held.values())
    assert sum(wanted.values()) == min(len(idle), spare) and bool(reason) == bool(wanted)


def test_who_has_most_gives_back_first() -> None:
    wanted, reason = shard_policy.give_back({"w0": 2, "w1": 4, "w2": 1}, ["w3", "w4"])
    assert wanted == {"w1": 2} and "w3, w4" in reason


def test_workers_are_added_one_by_one_while_there_is_work() -> None:
    count, reason = shard_policy.grow(most=4, known=2, coming=0, todo=1000, usual=10, active=2)
    assert count == 1 and "1000 rows" in reason
    assert shard_policy.grow(most=2, known=2, coming=0, todo=1000, usual=10, active=2) == (0, "")
    assert shard_policy.grow(most=4, known=3, coming=1, todo=1000, usual=10, active=2) == (0, "")
    assert shard_policy.grow(most=4, known=2, coming=0, todo=19, usual=10, active=2) == (0, "")


def test_positions_in_words() -> None:
    assert shard_policy.describe([(3, 4), (7, 10)]) == "3, 7..9"
    assert shard_policy.describe([(at, at + 1) for at in (1, 3, 5, 7)]) == "1, 3, 5, ..."
