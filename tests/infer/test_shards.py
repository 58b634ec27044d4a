"""What shards in hand miss, and segments that go when nobody needs them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.data.ranges import size
from shoestring.infer.pressure import Budget, default_bytes, may_read, read_rows
from shoestring.infer.regroup import all_failed, cut_back
from shoestring.infer.shards import HeldSegments, Read, Shards, cut_ranges, nth_position, without

MB = 1 << 20
ranges = st.lists(st.integers(1, 9), min_size=1, max_size=5).map(
    lambda lengths: tuple((20 * at, 20 * at + length) for at, length in enumerate(lengths))
)


def positions(parts: tuple[tuple[int, int], ...]) -> list[int]:
    return [at for start, stop in parts for at in range(start, stop)]


@given(ranges, st.integers(0, 30), st.sets(st.integers(0, 100)))
def test_ranges_are_cut_and_thinned(parts: tuple[tuple[int, int], ...], count: int, bad: set[int]) -> None:
    first, second = cut_ranges(parts, count)
    assert positions(first) + positions(second) == positions(parts)
    assert size(first) == min(count, size(parts))
    assert positions(without(parts, bad)) == [at for at in positions(parts) if at not in bad]
    assert [nth_position(parts, at) for at in range(size(parts))] == positions(parts)
    assert nth_position(parts, size(parts)) == -1


def test_a_segment_goes_when_the_last_who_needs_it_lets_go() -> None:
    gone: list[str] = []
    segments = HeldSegments(gone.append)
    segments.made("a", 10)
    segments.made("b", 5)
    segments.hold(["a"])
    segments.hold(["a"])
    segments.discard_unheld("a")
    segments.discard_unheld("b")
    assert gone == ["b"] and segments.held_bytes == 10
    segments.release(["a"])
    assert gone == ["b"]
    segments.release(["a"])
    assert gone == ["b", "a"] and segments.held_bytes == 0
    segments.made("c", 1)
    segments.clear()
    assert gone[-1] == "c"


def test_a_shard_is_complete_when_all_items_were_answered() -> None:
    gone: list[str] = []
    segments = HeldSegments(gone.append)
    shards = Shards({"a": "rows", "b": "a"}, ["b"], segments)
    shards.add(7, ((0, 3), (10, 12)), {10: "given up"})
    read = shards.next_read(100)
    assert read == Read(7, 0, ((0, 3), (11, 12)), 4) and shards.next_read(100) is None
    first, second = read.cut(3)
    segments.made("r2", 1)
    ready = shards.loaded(second, "r2", {}, 0.0)
    segments.made("r1", 3)
    ready += shards.loaded(first, "r1", {1: "damaged"}, 0.0)
    assert [(stage, one.segment, one.start, one.stop) for stage, one in ready] == [
        ("a", "r2", 0, 1), ("a", "r1", 0, 1), ("a", "r1", 2, 3)
    ]  # fmt: skip
    batch = tuple(one for _, one in ready)
    segments.made("x", 9)
    fresh = shards.answered("a", cut_back(batch, "x", 3, b"", {}), 0.0)
    assert [shards.position_of(one) for _, one in fresh] == [11, 0, 2] and not gone
    assert not shards.ready_to_write()
    shards.answered("b", all_failed((fresh[0][1],), "bad"), 0.0)
    segments.made("y", 9)
    shards.answered("b", cut_back(tuple(one for _, one in fresh[1:]), "y", 2, b"", {}), 0.0)
    assert gone == ["x"], "only stage b needed it"
    assert [one.lease_id for one in shards.ready_to_write()] == [7] and not shards.ready_to_write()
    order = shards.write_order(7, 1, "w0.1")
    assert [chunk.segment for chunk in order.chunks] == ["r1", "r2"]
    assert [(piece.source, piece.start) for piece in order.pieces["a"]] == [("r1", 0), ("r1", 2), ("r2", 0)]
    assert [(piece.source, piece.start) for piece in order.pieces["b"]] == [("x", 1), ("x", 2), ("x", 0)]
    assert order.verdicts == {10: "given up"}
    shards.drop(7)
    assert sorted(gone) == ["r1", "r2", "x", "y"] and 7 not in shards


def test_what_was_dropped_is_passed_over() -> None:
    gone: list[str] = []
    segments = HeldSegments(gone.append)
    shards = Shards({"a": "rows"}, ["a"], segments)
    shards.add(1, ((0, 2),), {})
    read = shards.next_read(1)
    rest = shards.next_read(1)
    assert read is not None and rest is not None
    segments.made("r", 1)
    ready = shards.loaded(read, "r", {}, 0.0)
    shards.drop(1)
    assert gone == ["r"]
    assert (
        shards.loaded(rest, "s", {}, 0.0) == []
        and shards.answered("a", all_failed((ready[0][1],), "x"), 0.0) == []
    )
    shards.unreadable(rest, "x")
    assert shards.position_of(ready[0][1]) == -1 and not len(shards)


def test_a_shard_of_verdicts_alone_is_complete_at_once() -> None:
    shards = Shards({"a": "rows"}, ["a"], HeldSegments(lambda name: None))
    shards.add(1, ((4, 6),), {4: "x", 5: "y"})
    assert [one.lease_id for one in shards.ready_to_write()] == [1]
    assert shards.write_order(1, 1, "w").chunks == ()


def test_rows_are_not_read_ahead_without_end() -> None:
    assert may_read(True, 10, 10, idle=False) and not may_read(True, 11, 10, idle=False)
    assert may_read(True, 11, 10, idle=True) and not may_read(False, 0, 10, idle=True)
    assert read_rows(1000, 0.0, MB) == 1000
    assert read_rows(1000, MB / 10, MB) == 10 and read_rows(1000, 5.0 * MB, MB) == 1


def test_the_budget_is_never_more_than_there_is() -> None:
    assert default_bytes(0, 1000 * MB, 1000 * MB, 900 * MB) == 250 * MB
    assert default_bytes(0, 1000 * MB, 100 * MB, 64 * MB) == 54 * MB
    assert default_bytes(30 * MB, 1000 * MB, 1000 * MB, 900 * MB) == 30 * MB
    full = Budget(100 * MB, 200 * MB, 25 * MB, held_bytes=10 * MB)
    assert full.now_bytes == 15 * MB, "others have filled the place: 20 MB are left to them"
    assert full.chunk_bytes == 100 * MB // 16
