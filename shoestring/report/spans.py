"""Spans of work and of traffic, and how much of one happens under the other: pure arithmetic (source: ours).

Plain data, so that whoever traces need not know how a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

from shoestring.base.errors import RecordError

Kind = Literal["forward", "backward", "update", "wait", "idle", "parameters", "gradients", "norm"]
Interval = tuple[float, float]
COMPUTE = "compute"  # the lane of the caller's thread
WORK: tuple[Kind, ...] = ("forward", "backward", "update")  # what it does there besides waiting
SCOPES: Mapping[str, str] = MappingProxyType(
    {"group": "inside the group", "peers": "between groups", "world": "over all ranks"}
)


@dataclass(frozen=True)
class Span:
    """One stretch of time on one lane.

    Attributes:
        lane: `COMPUTE`, or as of `lane_of`. Spans of a lane do not overlap.
        name: of the unit that it is about.
        start_s, end_s: on a clock that the ranks share.
        bytes: of the whole tensor that a collective is about; 0 in the compute lane.
        queued_s: from its issue to its start.
    """

    rank: int
    lane: str
    kind: Kind
    name: str
    start_s: float
    end_s: float
    bytes: int = 0
    queued_s: float = 0.0


@dataclass(frozen=True)
class Overlap:
    """What a trace says, over all its ranks.

    Attributes:
        hidden: share of the time with traffic under way in which the caller's thread computes.
        waiting: share of all time in which the caller's thread waits for traffic.
        both: share of the time with traffic between groups in which traffic inside the group is under way.
        between_hidden: as `hidden`, of traffic between groups alone.
        early: share of gradient traffic between groups (by time) that is under way before backward ends.
    """

    hidden: float
    waiting: float
    both: float
    between_hidden: float
    early: float


def lane_of(scope: str, gathers: bool) -> str:
    """The lane of collectives of a scope: gathers and sums have connections of their own, and a lane each."""
    return f"{scope} {'gather' if gathers else 'sum'}"


def read_spans(rows: Iterable[Mapping[str, Any]]) -> list[Span]:
    """Spans from JSON values.

    Raises:
        RecordError: a row has other fields, or ends before it starts.
    """
    spans = []
    for number, row in enumerate(rows):
        try:
            span = Span(**row)
        except TypeError as error:
            raise RecordError(f"row {number} is no span: {error}", "record the trace anew") from error
        if span.end_s < span.start_s:
            raise RecordError(f"span {number} ends before it starts", "record the trace anew")
        spans.append(span)
    return spans


def clipped(spans: Iterable[Span], start_s: float, end_s: float) -> list[Span]:
    """The parts of spans inside a window."""
    return [
        replace(span, start_s=max(span.start_s, start_s), end_s=min(span.end_s, end_s))
        for span in spans
        if span.start_s < end_s and span.end_s > start_s
    ]


def examples(spans: Sequence[Span]) -> dict[str, Span]:
    """One span for each thing that a trace is to show, of the spans of one rank; what it does not show is
    missing.

    Returns:
        "fetch": parameters inside the group, while another unit computes;
        "leave": gradients inside the group, while backward of another unit runs;
        "between": gradients between groups, while traffic inside the group runs and something computes.
        The one that is longest under the other each time.
    """
    work = [span for span in spans if span.lane == COMPUTE and span.kind in WORK]
    inside = _of(spans, "group", ("parameters", "gradients"))
    backward = [span for span in work if span.kind == "backward"]
    everything = merged((span.start_s, span.end_s) for span in work)
    candidates: dict[str, list[tuple[float, Span]]] = {"fetch": [], "leave": [], "between": []}
    for span in spans:
        own = [(span.start_s, span.end_s)]
        if span.lane == lane_of("group", True):
            other = merged((one.start_s, one.end_s) for one in work if one.name != span.name)
            candidates["fetch"].append((length(shared(own, other)), span))
        elif span.lane == lane_of("group", False):
            other = merged((one.start_s, one.end_s) for one in backward if one.name != span.name)
            candidates["leave"].append((length(shared(own, other)), span))
        elif span.lane == lane_of("peers", False):
            candidates["between"].append((length(shared(shared(own, inside), everything)), span))
    best = {what: max(found, key=lambda one: one[0]) for what, found in candidates.items() if found}
    return {what: span for what, (under_s, span) in best.items() if under_s > 0}


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, disjoint and in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif end > start:
            found.append((start, end))
    return found


def shared(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """Where both are; each disjoint and in order, as `merged` gives them."""
    found, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        start, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < end:
            found.append((start, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return found


def length(intervals: Iterable[Interval]) -> float:
    """Seconds that disjoint intervals cover."""
    return sum(end - start for start, end in intervals)


def overlap(spans: Sequence[Span]) -> Overlap:
    """How much traffic hides, and where; 0 where there is nothing to hide. Norms are too small to count."""
    total = dict.fromkeys(
        ("traffic", "hidden", "wall", "wait", "peers", "both", "peers_hidden", "sums", "early"), 0.0
    )
    for rank in sorted({span.rank for span in spans}):
        own = [span for span in spans if span.rank == rank]
        work = _of(own, COMPUTE, WORK)
        traffic = _of(own, "", ("parameters", "gradients"))
        inside = _of(own, "group", ("parameters", "gradients"))
        between = _of(own, "peers", ("parameters", "gradients"))
        sums, backward = _of(own, "peers", ("gradients",)), _of(own, COMPUTE, ("backward",))
        before_end = [(min(s.start_s for s in own), backward[-1][1])] if backward else []
        total["traffic"] += length(traffic)
        total["hidden"] += length(shared(traffic, work))
        total["wall"] += max(span.end_s for span in own) - min(span.start_s for span in own)
        total["wait"] += length(_of(own, COMPUTE, ("wait",)))
        total["peers"] += length(between)
        total["both"] += length(shared(between, inside))
        total["peers_hidden"] += length(shared(between, work))
        total["sums"] += length(sums)
        total["early"] += length(shared(sums, before_end))
    return Overlap(
        hidden=_share(total["hidden"], total["traffic"]),
        waiting=_share(total["wait"], total["wall"]),
        both=_share(total["both"], total["peers"]),
        between_hidden=_share(total["peers_hidden"], total["peers"]),
        early=_share(total["early"], total["sums"]),
    )


def _of(spans: Sequence[Span], lane: str, kinds: Sequence[Kind]) -> list[Interval]:
    """The union of spans of these kinds on lanes that begin so; lane "": on any."""
    return merged((s.start_s, s.end_s) for s in spans if s.lane.startswith(lane) and s.kind in kinds)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
