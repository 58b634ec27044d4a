"""Arithmetic of spans: unions, intersections, and the shares that a trace is said to have."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.errors import RecordError
from shoestring.report.spans import (
    COMPUTE,
    Kind,
    Span,
    clipped,
    examples,
    lane_of,
    length,
    merged,
    overlap,
    read_spans,
    shared,
)

FETCH, LEAVE = lane_of("group", True), lane_of("group", False)
BRING, SPREAD = lane_of("peers", True), lane_of("peers", False)
INTERVALS = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 8)).map(lambda pair: (pair[0], pair[0] + pair[1])),
    max_size=8,
)


def span(lane: str, kind: Kind, start_s: float, end_s: float, name: str = "1", rank: int = 0) -> Span:
    return Span(rank, lane, kind, name, start_s, end_s)


def cells(intervals: list[tuple[int, int]]) -> set[int]:
    return {cell for start, end in intervals for cell in range(start, end)}


@given(INTERVALS, INTERVALS)
def test_unions_and_intersections_are_those_of_sets(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    union = merged(left)
    assert length(union) == len(cells(left))
    assert all(first[1] < second[0] for first, second in pairwise(union))
    assert length(shared(union, merged(right))) == len(cells(left) & cells(right))


def test_shares_are_those_of_the_time_of_traffic() -> None:
    spans = [
        span(COMPUTE, "backward", 0, 4, "2"),
        span(COMPUTE, "wait", 4, 6),
        span(COMPUTE, "update", 6, 8),
        span(FETCH, "parameters", 1, 3),  # under compute
        span(SPREAD, "gradients", 2, 7),  # 2..4 and 6..7 under compute, 2..3 with traffic inside the group
        span(lane_of("world", False), "norm", 7, 8),  # does not count
    ]
    found = overlap(spans)
    assert found.hidden == pytest.approx((1 + 2 + 1) / 6)
    assert found.waiting == pytest.approx(2 / 8)
    assert found.both == pytest.approx(1 / 5)
    assert found.between_hidden == pytest.approx(3 / 5)
    assert found.early == pytest.approx(2 / 5)


def test_ranks_do_not_hide_one_another() -> None:
    spans = [span(COMPUTE, "forward", 0, 4, rank=0), span(FETCH, "parameters", 0, 4, rank=1)]
    assert overlap(spans).hidden == 0
    assert overlap([*spans, span(COMPUTE, "forward", 0, 2, rank=1)]).hidden == pytest.approx(0.5)


def test_a_trace_without_traffic_hides_nothing() -> None:
    assert set(asdict(overlap([span(COMPUTE, "forward", 0, 1)])).values()) == {0.0}
    assert set(asdict(overlap([])).values()) == {0.0}


def test_examples_are_the_spans_that_hide_most() -> None:
    spans = [
        span(COMPUTE, "forward", 0, 4, "1"),
        span(COMPUTE, "backward", 4, 9, "1"),
        span(FETCH, "parameters", 0, 4, "1"),  # its own unit's: hides nothing
        span(FETCH, "parameters", 3, 5, "2"),
        span(LEAVE, "gradients", 1, 4, "2"),  # under forward, which is not backward
        span(LEAVE, "gradients", 4, 5, "2"),
        span(SPREAD, "gradients", 3.5, 9, "2"),
        span(SPREAD, "gradients", 8, 9, "3"),
    ]
    found = examples(spans)
    assert found == {"fetch": spans[3], "leave": spans[5], "between": spans[6]}


def test_what_does_not_overlap_is_no_example() -> None:
    spans = [
        span(COMPUTE, "backward", 0, 1, "2"),
        span(FETCH, "parameters", 1, 2),
        span(SPREAD, "gradients", 0, 1),
        span(BRING, "parameters", 0, 1),
    ]
    assert examples(spans) == {}


def test_a_window_cuts_spans() -> None:
    spans = [span(COMPUTE, "forward", 0, 2), span(COMPUTE, "wait", 2, 5), span(COMPUTE, "update", 5, 6)]
    cut = clipped(spans, 1, 3)
    assert [(one.kind, one.start_s, one.end_s) for one in cut] == [("forward", 1, 2), ("wait", 2, 3)]


def test_spans_come_back_from_rows() -> None:
    spans = [span(FETCH, "parameters", 0.5, 2)]
    assert read_spans([asdict(one) for one in spans]) == spans


@pytest.mark.parametrize("change", [{"end_s": 0.0}, {"surprise": 1}])
def test_a_row_that_is_no_span_is_refused(change: dict[str, float]) -> None:
    row = asdict(span(FETCH, "parameters", 0.5, 2)) | change
    with pytest.raises(RecordError, match="span"):
        read_spans([row])
