"""A range of a flattened tensor as boxes: all of it, once, in few."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import MetadataIndex

from shoestring.parallel.paro.pieces import PieceTensor, boxes


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 5), max_size=4)))
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@given(ranges())
def test_boxes_cover_the_range_once_and_in_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = case
    whole = torch.arange(math.prod(shape)).view(shape)
    covered = []
    found = list(boxes(shape, start, stop))
    for offsets, sizes, first in found:
        box = whole[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))]
        assert box.shape == sizes
        covered.append(box.flatten())
        assert int(box.flatten()[0]) == first
    assert torch.equal(torch.cat([torch.arange(0), *covered]), torch.arange(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)
    assert len({offsets for offsets, _, _ in found}) == len(found)  # so a box is known by where it begins


@given(ranges())
def test_boxes_are_views_into_what_is_held(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = case
    local = torch.arange(start, stop).float()
    piece = PieceTensor(local, torch.Size(shape), start)
    for item in piece.__create_write_items__("name", piece):
        view = piece.__get_tensor_shard__(item.index)
        view.neg_()
        assert item.tensor_data is not None and view.shape == item.tensor_data.chunk.sizes
    assert torch.equal(local, -torch.arange(start, stop).float())
    assert len(piece.__create_chunk_list__()) == len(list(boxes(shape, start, stop)))


def test_a_piece_can_only_be_saved_and_loaded() -> None:
    piece = PieceTensor(torch.zeros(3), torch.Size((2, 4)), 2)
    assert piece.shape == (2, 4) and "2..5" in repr(piece)
    with pytest.raises(NotImplementedError, match="gather it first"):
        piece + 1
    with pytest.raises(ValueError, match="no box begins at"):
        piece.__get_tensor_shard__(MetadataIndex("name", torch.Size((0, 0))))
