"""A run record as typed tables: a pure function of its events (source: ours).

Time on the page is *active* time: seconds since the start of the run without the pauses between
an end and the next resume. A step that was done again after a restart from a checkpoint counts
once, as it was done last: that is the step in the model that exists.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import msgspec

from shoestring.base.record import Damage, Events

Event = dict[str, Any]


class WorkerStep(msgspec.Struct, frozen=True):
    """One worker's part in one step."""

    samples: int = 0
    compute_s: float = 0.0
    exchange_s: float = 0.0
    memory_bytes: int = 0


class StepEvent(msgspec.Struct, frozen=True):
    """The fields of a `step` event that the page reads; metrics that were not finite are None."""

    step: int
    wall_s: float
    round_id: int = 0
    metrics: dict[str, float | None] = {}
    counts: dict[str, float] = {}
    batch: int = 0
    took_s: float = 0.0
    todo: int = 0
    done: int = 0
    workers: dict[str, WorkerStep] = {}


@dataclass(frozen=True)
class Step:
    """A step that is in the model, the index of its event, and when it was settled (active s)."""

    index: int
    at_s: float
    event: StepEvent


@dataclass(frozen=True)
class Stretch:
    """A worker's membership in one round, in active seconds."""

    worker: str
    index: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Moment:
    """One row of the timeline; `indices` has several events where equal ones follow one another."""

    kind: str
    indices: tuple[int, ...]
    at_s: float


@dataclass(frozen=True)
class RecordView:
    """Everything that the page is made from.

    Attributes:
        events: the intact events in order; the index of an event is its place here.
        damage: stretches of the log that are not events.
        odd: (index, reason) of events that do not have the fields of their kind.
        at_s: active time of each event.
        steps: the steps that are in the model, ascending.
        redone: step events that a later event of the same step replaced.
    """

    events: tuple[Event, ...]
    damage: tuple[Damage, ...]
    odd: tuple[tuple[int, str], ...]
    at_s: tuple[float, ...]
    steps: tuple[Step, ...]
    redone: int
    stretches: tuple[Stretch, ...]
    moments: tuple[Moment, ...]
    _of: dict[str, tuple[int, ...]] = field(repr=False)

    def of(self, kind: str) -> tuple[int, ...]:
        """Indices of the events of a kind."""
        return self._of[kind] if kind in self._of else ()

    def last(self, kind: str) -> int | None:
        """Index of the last event of a kind."""
        found = self.of(kind)
        return found[-1] if found else None

    @cached_property
    def status(self) -> str:
        """`finished`, `interrupted`, `failed`, `running or killed`, or `empty`."""
        for event in reversed(self.events):
            if event["kind"] == "end" and isinstance(event.get("status"), str):
                return str(event["status"])
            if event["kind"] == "run":
                return "running or killed"
        return "running or killed" if self.events else "empty"

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics; `loss` first."""
        names = {name for step in self.steps for name in step.event.metrics}
        return tuple(sorted(names, key=lambda name: (name != "loss", name)))

    @cached_property
    def counts(self) -> tuple[str, ...]:
        """Names of all counts."""
        return tuple(sorted({name for step in self.steps for name in step.event.counts}))

    @cached_property
    def workers(self) -> tuple[str, ...]:
        """Names of all workers that were in a round or a step."""
        in_steps = {name for step in self.steps for name in step.event.workers}
        return tuple(sorted(in_steps | {stretch.worker for stretch in self.stretches}))


def view_of(log: Events) -> RecordView:
    """The tables of a whole log."""
    events = tuple(log.events)
    at_s = _active_time(events)
    steps, redone, odd = _steps(events, at_s)
    of: dict[str, list[int]] = {}
    for index, event in enumerate(events):
        of.setdefault(event["kind"], []).append(index)
    return RecordView(
        events=events,
        damage=tuple(log.damage),
        odd=odd,
        at_s=at_s,
        steps=steps,
        redone=redone,
        stretches=_stretches(events, at_s),
        moments=_moments(events, at_s),
        _of={kind: tuple(indices) for kind, indices in of.items()},
    )


def prefix(log: Events, count: int) -> Events:
    """The log as it was when it had `count` intact events."""
    damage = [item for n, item in enumerate(log.damage) if item.line <= count + n + 1]
    return Events(log.events[:count], damage)


def fingerprint(log: Events) -> str:
    """SHA-256 (hex) over the intact events."""
    digest = hashlib.sha256()
    for event in log.events:
        digest.update(msgspec.json.encode(event) + b"\n")
    return digest.hexdigest()


def _wall_s(event: Event) -> float:
    value = event.get("wall_s")
    return float(value) if isinstance(value, int | float) else 0.0


def _active_time(events: tuple[Event, ...]) -> tuple[float, ...]:
    """Seconds of running until each event; a wall clock that is set back stands still instead."""
    at_s: list[float] = []
    now_s, before_s = 0.0, None
    for event in events:
        wall_s = _wall_s(event)
        if before_s is not None and event["kind"] != "run":
            now_s += max(0.0, wall_s - before_s)
        before_s = wall_s
        at_s.append(now_s)
    return tuple(at_s)


def _steps(
    events: tuple[Event, ...], at_s: tuple[float, ...]
) -> tuple[tuple[Step, ...], int, tuple[tuple[int, str], ...]]:
    kept: list[Step] = []
    odd: list[tuple[int, str]] = []
    redone = 0
    for index, event in enumerate(events):
        if event["kind"] != "step":
            continue
        try:
            read = msgspec.convert(event, StepEvent, strict=False)
        except msgspec.ValidationError as error:
            odd.append((index, str(error)))
            continue
        while kept and kept[-1].event.step >= read.step:
            kept.pop()
            redone += 1
        kept.append(Step(index, at_s[index], read))
    return tuple(kept), redone, tuple(odd)


def _stretches(events: tuple[Event, ...], at_s: tuple[float, ...]) -> tuple[Stretch, ...]:
    """From each round's start until a member is known to be gone, the next round, or the session's end."""
    found: list[Stretch] = []
    open_: dict[str, tuple[int, float]] = {}

    def close(worker: str, to_s: float) -> None:
        index, from_s = open_.pop(worker)
        found.append(Stretch(worker, index, from_s, to_s))

    for index, event in enumerate(events):
        if event["kind"] in ("round", "end", "run"):
            ends_s = at_s[index - 1] if event["kind"] == "run" and index else at_s[index]
            for worker in list(open_):
                close(worker, ends_s)
        if event["kind"] == "round" and isinstance(event.get("members"), list):
            open_ = {str(worker): (index, at_s[index]) for worker in event["members"]}
        ends_a_worker = event["kind"] == "fault" or event.get("action") == "kill"
        if ends_a_worker and not isinstance(event.get("failed"), list) and str(event.get("worker")) in open_:
            close(str(event["worker"]), at_s[index])
    for worker in list(open_):
        close(worker, at_s[-1])
    return tuple(sorted(found, key=lambda stretch: (stretch.from_s, stretch.worker)))


TOLD = ("run", "end", "result", "fault", "recovery", "checkpoint", "round", "back", "decision", "effect")
"""Kinds of events that a person is told, those that are kept longest first where there are too many."""


def _moments(events: tuple[Event, ...], at_s: tuple[float, ...]) -> tuple[Moment, ...]:
    """What a person should know, in order; decisions in a row to change nothing are one entry."""
    rows: list[Moment] = []
    for index, event in enumerate(events):
        kind = event["kind"]
        if kind not in TOLD:
            continue
        idle = _is_idle(event)
        if idle and rows and _is_idle(events[rows[-1].indices[-1]]):
            rows[-1] = Moment(kind, (*rows[-1].indices, index), rows[-1].at_s)
        else:
            rows.append(Moment(kind, (index,), at_s[index]))
    return tuple(rows)


def _is_idle(event: Event) -> bool:
    return event["kind"] == "decision" and event.get("action") == "none"
