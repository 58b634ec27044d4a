"""Batches over chunks and shards, and answers that find back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.errors import InferError
from shoestring.infer.regroup import Queue, Slice, all_failed, cut_back, halves, runs_between, total

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def slices(lengths: list[int], since_s: float = 0.0) -> tuple[Slice, ...]:
    return tuple(
        Slice(f"s{place}", 10, 10 + length, place % 3, (place,), since_s)
        for place, length in enumerate(lengths)
    )


def items(parts: tuple[Slice, ...]) -> list[tuple[str, int]]:
    return [(one.segment, at) for one in parts for at in range(one.start, one.stop)]


@given(sizes, st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_items_come_out_once_in_order_in_batches_of_the_size(lengths: list[int], takes: list[int]) -> None:
    queue, given_in = Queue(), slices(lengths)
    queue.add(given_in)
    out: list[tuple[str, int]] = []
    for count in takes:
        batch = queue.take(count)
        assert total(batch) == min(count, sum(lengths) - len(out))
        if count % 5 == 0:  # nothing was done with it
            queue.put_back(batch)
        else:
            out += items(batch)
        assert queue.size == sum(lengths) - len(out)
    assert out == items(given_in)[: len(out)]


def test_a_batch_is_ripe_when_it_is_full_or_nothing_more_comes_or_it_has_waited() -> None:
    queue = Queue()
    assert not queue.ripe(1, 0.0, 0.0, idle=True, dry=True)
    queue.add(slices([3], since_s=5.0))
    assert queue.ripe(3, 5.0, 1.0, idle=False, dry=False)
    assert not queue.ripe(4, 5.9, 1.0, idle=True, dry=False)
    assert queue.ripe(4, 6.0, 1.0, idle=True, dry=False)
    assert not queue.ripe(4, 6.0, 1.0, idle=False, dry=True)
    assert queue.ripe(4, 5.0, 1.0, idle=True, dry=True)


def test_a_dropped_shard_leaves_the_queue() -> None:
    queue = Queue()
    queue.add(slices([2, 3, 4, 5]))
    queue.drop(0)
    assert queue.size == 7 and {one.segment for one in queue.take(9)} == {"s1", "s2"}


@given(sizes)
def test_halves_are_all_of_it(lengths: list[int]) -> None:
    whole = slices(lengths)
    if total(whole) < 2:
        with pytest.raises(ValueError, match="two"):
            halves(whole)
        return
    first, second = halves(whole)
    assert items(first) + items(second) == items(whole)
    assert total(first) - total(second) in (0, 1) and all(one.size for one in (*first, *second))


@given(st.data())
def test_an_answer_is_cut_at_the_bounds_of_what_went_in(data: st.DataObject) -> None:
    parts = slices(data.draw(sizes))
    count = total(parts)
    bad = data.draw(st.sets(st.integers(0, count - 1)))
    many = data.draw(st.booleans())
    each = (
        [0 if place in bad else data.draw(st.integers(0, 3)) for place in range(count)]
        if many
        else [1] * count
    )
    counts = np.array(each, "<i4").tobytes() if many else b""
    backs = cut_back(parts, "answer", sum(each), counts, {place: f"bad {place}" for place in bad})
    going_on: list[int] = []
    place = 0
    for one, back in zip(parts, backs, strict=True):
        assert (back.piece.source, back.piece.start, back.piece.stop) == (one.segment, one.start, one.stop)
        mine = range(place, place + one.size)
        assert back.piece.errors == {at - place: f"bad {at}" for at in mine if at in bad}
        assert back.failed == len(bad & set(mine))
        if back.piece.answer:
            assert back.piece.at == sum(each[:place]) and back.out == sum(each[at] for at in mine)
            assert np.frombuffer(back.piece.counts, "<i4").tolist() == (
                [each[at] for at in mine] if many else []
            )
        else:
            assert back.failed == one.size
        going_on += [at for start, stop in back.runs for at in range(start, stop)]
        place += one.size
    wanted = range(sum(each)) if many else [at for at in range(count) if at not in bad]
    assert going_on == list(wanted)


def test_what_all_failed_may_have_no_segment() -> None:
    backs = cut_back(slices([2, 1]), "answer", 0, b"", {0: "a", 1: "b", 2: "c"})
    assert [back.piece.answer for back in backs] == ["", ""] and not any(back.runs for back in backs)
    assert all_failed(slices([2]), "bad")[0].piece.errors == {0: "bad", 1: "bad"}


@pytest.mark.parametrize(
    ("rows", "counts", "errors"),
    [(2, b"", {}), (4, np.array([1, 1], "<i4").tobytes(), {}), (3, b"", {3: "x"}), (3, b"", {-1: "x"})],
)
def test_an_answer_that_is_not_of_this_batch_is_refused(
    rows: int, counts: bytes, errors: dict[int, str]
) -> None:
    with pytest.raises(InferError, match="an answer of"):
        cut_back(slices([3]), "answer", rows, counts, errors)


def test_runs_are_what_lies_between_errors() -> None:
    assert runs_between(0, 5, [1, 2]) == ((0, 1), (3, 5))
    assert runs_between(3, 5, [3, 4]) == () and runs_between(3, 5, []) == ((3, 5),)
