"""How large shards are, who gives some back, when a worker is added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.fleet import shard_policy


@given(st.integers(1, 10_000), st.integers(1, 10**9), st.integers(0, 1000))
def test_a_shard_is_never_empty_nor_larger_than_usual_nor_a_crumb(
    usual: int, todo: int, workers: int
) -> None:
    rows = shard_policy.shard_rows(usual, todo, workers)
    assert usual / shard_policy.SMALLEST <= rows <= usual and rows >= 1
    assert rows == usual or workers >= 2


def test_towards_the_end_two_shards_are_left_for_each_worker() -> None:
    assert shard_policy.shard_rows(100, 10_000, 4) == 100
    assert shard_policy.shard_rows(100, 400, 4) == 50
    assert shard_policy.shard_rows(100, 8, 4) == 13


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
