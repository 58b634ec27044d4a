"""A batch that fails is cut until the bad items are alone, and no innocent one is blamed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.infer.blame import Blame, BugWatch, Failure, Kind, Work

Items = tuple[int, ...]


def split(items: Items) -> tuple[Items, Items, int]:
    middle = (len(items) + 1) // 2
    return items[:middle], items[middle:], middle


def run(
    count: int, bad: set[int], kind: Kind, outside: frozenset[int] = frozenset()
) -> tuple[Items, Items, int]:
    """(passed, guilty, tries): `bad` items always fail; tries numbered in `outside` fail for no reason."""
    blame: Blame[Items] = Blame(split)
    failure = Failure(kind, kind)
    passed, guilty, tries = [], [], 0
    work: Work[Items] | None = Work(tuple(range(count)), count)
    while work is not None:
        tries += 1
        assert len(work.parts) == work.items
        if bad & set(work.parts) or tries in outside:
            parts, reason = blame.failed(work, failure)
            assert reason
            guilty += parts or ()
        else:
            blame.passed(work)
            passed += work.parts
        work = blame.next()
    return tuple(sorted(passed)), tuple(sorted(guilty)), tries


@given(st.integers(1, 70), st.sets(st.integers(0, 69)), st.sampled_from(["died", "hung", "memory", "raised"]))
def test_every_bad_item_is_found_and_nobody_else(count: int, bad: set[int], kind: Kind) -> None:
    bad = {item for item in bad if item < count}
    passed, guilty, _ = run(count, bad, kind)
    assert guilty == tuple(sorted(bad))
    assert passed == tuple(sorted(set(range(count)) - bad))


@given(st.integers(1, 64), st.integers(1, 12))
def test_a_kill_from_outside_blames_nobody(count: int, at: int) -> None:
    passed, guilty, _ = run(count, set(), "killed", frozenset({at}))
    assert not guilty and passed == tuple(range(count))


def test_one_bad_item_costs_about_two_tries_a_halving() -> None:
    worst = max(run(1024, {item}, "died")[2] for item in (0, 1, 500, 511, 512, 1023))
    assert worst <= 2 * 10 + 2


@pytest.mark.parametrize(("kind", "tries"), [("raised", 1), ("died", 2), ("hung", 2), ("killed", 3)])
def test_an_item_alone_is_blamed_once_it_is_sure(kind: Kind, tries: int) -> None:
    assert run(1, {0}, kind) == ((), (0,), tries)


def test_dropped_items_are_forgotten_and_the_others_stay() -> None:
    blame: Blame[Items] = Blame(split)
    blame.failed(Work((0, 1, 2, 3), 4), Failure("died", "died"))
    blame.drop(lambda items: (kept := tuple(one for one in items if one != 1), len(kept)))
    assert blame.items == 3
    first, second = blame.next(), blame.next()
    assert first is not None and second is not None and blame.next() is None
    assert sorted(first.parts + second.parts) == [0, 2, 3]
    blame.put_back(second)
    blame.put_back(first)
    blame.drop(lambda items: ((), 0))
    assert blame.next() is None and not len(blame)


def test_a_bug_is_the_same_failure_of_all_first_items() -> None:
    watch, raised = BugWatch(3), Failure("raised", "KeyError: 'x'", "KeyError@f:3")
    assert [watch.guilty(raised) for _ in range(3)] == [False, False, True]
    assert watch.open


def test_bad_items_are_no_bug() -> None:
    other = Failure("raised", "ValueError", "ValueError@f:4")
    raised = Failure("raised", "KeyError: 'x'", "KeyError@f:3")
    mixed, proven = BugWatch(2), BugWatch(2)
    assert not mixed.guilty(raised) and not mixed.guilty(other) and not mixed.guilty(other)
    proven.passed()
    assert not any(proven.guilty(raised) for _ in range(5)) and not proven.open and not mixed.open
