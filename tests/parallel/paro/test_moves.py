"""Shards nest, and a plan of moves brings each rank all that can be had, from as near as can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoestring.cluster.strategies import LETTERS, Layout
from shoestring.parallel.paro.moves import Range, cut_shard, plan_moves

LENGTH = 30


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    size, count = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks = draw(st.permutations(range(size * count)))
    return Layout(tuple(tuple(ranks[first : first + size]) for first in range(0, size * count, size)))


@st.composite
def plans(draw: st.DrawFn) -> tuple[list[Range], list[Range | None], Layout]:
    layout = draw(layouts())
    some = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(lambda pair: (min(pair), max(pair)))
    wanted = [draw(some) for _ in range(layout.size)]
    offers = [draw(st.none() | some) for _ in range(layout.size)]
    return wanted, offers, layout


def inside(part: Range | None) -> set[int]:
    """Elements of a range."""
    return set() if part is None else set(range(*part))


@given(layouts(), st.integers(1, 200))
def test_shards_partition_and_nest(layout: Layout, numel: int) -> None:
    padded = -(-numel // layout.size) * layout.size
    ranks = range(layout.size)
    held = {x: [inside(cut_shard(numel, padded, layout, x, rank)) for rank in ranks] for x in LETTERS}
    for rank in ranks:
        assert held["G"][rank] <= held["I"][rank] <= held["N"][rank] == set(range(numel))
    assert sum(len(part) for part in held["G"]) == numel
    for group in layout.groups:
        assert sum(len(held["I"][rank]) for rank in group) == numel
        assert set().union(*(held["I"][rank] for rank in group)) == set(range(numel))
    for local in range(layout.group_size):  # peers: the same by I, and its parts by G
        peers = [group[local] for group in layout.groups]
        assert all(held["I"][rank] == held["I"][peers[0]] for rank in peers)
        assert set().union(*(held["G"][rank] for rank in peers)) == held["I"][peers[0]]


@given(plans())
def test_moves_and_what_is_missing_are_what_is_wanted(
    case: tuple[list[Range], list[Range | None], Layout],
) -> None:
    wanted, offers, layout = case
    moves, missing = plan_moves(wanted, offers, layout)
    offered = [inside(offer) for offer in offers]
    for target in range(layout.size):
        got = [i for move in moves if move.target == target for i in range(move.start, move.stop)]
        lost = [i for part in (missing[target] if target in missing else ()) for i in range(*part)]
        assert sorted(got + lost) == sorted(inside(wanted[target]))
        assert not set(lost) & set().union(*offered)
    for move in moves:
        part = set(range(move.start, move.stop))
        assert part and part <= offered[move.source]
        near = set(layout.groups[layout.locate(move.target)[0]])
        if move.source != move.target:
            assert part.isdisjoint(offered[move.target])
        if move.source not in near:
            assert not part & set().union(*(offered[rank] for rank in near))


@given(layouts())
def test_what_all_have_is_sent_by_many(layout: Layout) -> None:
    """Ranks that want everything and have nothing do not all ask the same one."""
    half = layout.size // 2
    offers: list[Range | None] = [(0, LENGTH) if rank >= half else None for rank in range(layout.size)]
    moves, missing = plan_moves([(0, LENGTH)] * layout.size, offers, Layout((tuple(range(layout.size)),)))
    assert not missing
    asked = [move.source for move in moves if move.source != move.target]
    assert len(moves) == layout.size and len(asked) == len(set(asked)) == half
