"""The derivation of every number on the page: name -> pure function of the record (source: ours).

A page names for each number its formula, the arguments, and the range of events it was made
from; `verify` evaluates the same formula again. Arguments are JSON values. A formula raises
`LookupError` when the record does not hold what it is asked for.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from shoestring.report import job_view
from shoestring.report.record_view import RecordView
from shoestring.report.series import count_of, rounded
from shoestring.report.tables import shown_moments

LAST_STEPS = 20
WORKER_SECONDS = ("compute_s", "exchange_s")
Args = tuple[Any, ...]


@dataclass(frozen=True)
class Formula:
    """How a number is made.

    Attributes:
        compute: (view, args) -> value.
        kinds: the kinds of events it reads; none when the first argument is an event's index.
        about: for people; `{0}` is the first argument.
    """

    compute: Callable[[RecordView, Args], Any]
    kinds: tuple[str, ...]
    about: str


def evaluate(view: RecordView, formula: str, args: Args) -> Any:
    """The value of a formula.

    Raises:
        LookupError: there is no such formula, or the record does not hold what it needs.
    """
    return FORMULAS[formula].compute(view, args)


def event_range(view: RecordView, formula: str, args: Args) -> tuple[int, int]:
    """First and last index of the events that a value is made from; (-1, -1) for none.

    Raises:
        LookupError: there is no such formula.
    """
    kinds = FORMULAS[formula].kinds
    if not kinds:
        return int(args[0]), int(args[0])
    ends = [end for kind in kinds if view.of(kind) for end in (view.of(kind)[0], view.of(kind)[-1])]
    if "*" in kinds:
        return (0, len(view.events) - 1) if view.events else (-1, -1)
    return (min(ends), max(ends)) if ends else (-1, -1)


def _field(view: RecordView, args: Args) -> Any:
    value: Any = view.events[_index(view, args)]
    for key in args[1:]:
        value = value[key]
    return value


def _key(view: RecordView, args: Args) -> str:
    _field(view, args)
    return str(args[-1])


def _setting(view: RecordView, args: Args) -> str:
    """(event, "settings", *keys) -> the setting's full dotted name."""
    _field(view, args)
    return ".".join(str(key) for key in args[2:])


def _path(view: RecordView, args: Args) -> str:
    """(event, *keys) -> all keys as words."""
    _field(view, args)
    return " ".join(str(key) for key in args[1:])


def _length(view: RecordView, args: Args) -> int:
    return len(_field(view, args))


def _at(view: RecordView, args: Args) -> float:
    return view.at_s[_index(view, args)]


def _index(view: RecordView, args: Args) -> int:
    if type(args[0]) is not int or not 0 <= args[0] < len(view.events):
        raise LookupError(f"there is no event {args[0]}")
    return args[0]


def _moment_size(view: RecordView, args: Args) -> int:
    return next(len(moment.indices) for moment in view.moments if moment.indices[0] == args[0])


def _count_of_kind(view: RecordView, args: Args) -> int:
    return len(view.of(args[0]))


def _faults(view: RecordView, args: Args) -> int:
    return sum("drill" not in view.events[i] for i in view.of("fault"))


def _count_where(view: RecordView, args: Args) -> int:
    kind, key, value = args
    return sum(key in view.events[i] and view.events[i][key] == value for i in view.of(kind))


def _median_of(view: RecordView, args: Args) -> float:
    return statistics.median(_values(view, args))


def _max_of(view: RecordView, args: Args) -> float:
    return max(_values(view, args))


def _sum_of(view: RecordView, args: Args) -> float:
    return sum(_values(view, args))


def _values(view: RecordView, args: Args) -> list[float]:
    kind, key = args
    found = [view.events[i][key] for i in view.of(kind) if key in view.events[i]]
    if not found:
        raise LookupError(f"no {kind} event holds {key}")
    return found


def _reforms(view: RecordView) -> list[float]:
    """Seconds of every re-forming: the rounds after the first of each session."""
    found, first = [], True
    for event in view.events:
        if event["kind"] == "run":
            first = True
        elif event["kind"] == "round":
            if not first:
                found.append(float(event["reform_s"]))
            first = False
    if not found:
        raise LookupError("no round formed again")
    return found


def _metric_last(view: RecordView, args: Args) -> float:
    known = _metric_values(view, args)
    return rounded(statistics.fmean(known[-LAST_STEPS:]))


def _metric_values(view: RecordView, args: Args) -> list[float]:
    known = [step.event.metrics[args[0]] for step in view.steps if args[0] in step.event.metrics]
    values = [value for value in known if value is not None]
    if not values:
        raise LookupError(f"no step has the metric {args[0]}")
    return values


def _count_total(view: RecordView, args: Args) -> float:
    return sum(count_of(step, args[0]) for step in view.steps)


def _rate(view: RecordView, args: Args) -> float:
    steps = view.steps
    if len(steps) < 2 or steps[-1].at_s <= steps[0].at_s:
        raise LookupError("a rate needs two steps")
    return rounded(sum(count_of(step, args[0]) for step in steps[1:]) / (steps[-1].at_s - steps[0].at_s))


def _step_median(view: RecordView, args: Args) -> float:
    return statistics.median(step.event.took_s for step in view.steps)


def _last_step(view: RecordView, args: Args) -> int:
    return view.steps[-1].event.step


def _ledger(view: RecordView, args: Args) -> int:
    last = view.steps[-1].event
    return {"done": last.done, "todo": last.todo}[args[0]]


def _worker(view: RecordView, args: Args) -> float:
    """(worker, what): samples, steps, share, compute_s (median), samples_per_s, exchange_share,
    memory_bytes (peak)."""
    name, what = args
    mine = [step.event.workers[name] for step in view.steps if name in step.event.workers]
    samples = sum(part.samples for part in mine)
    if what in ("samples", "steps"):
        return samples if what == "samples" else len(mine)
    if not mine:
        raise LookupError(f"{name} took part in no step")
    if what == "share":
        return rounded(samples / _count_total(view, ("samples",)))
    if what == "compute_s":
        return statistics.median(part.compute_s for part in mine)
    if what == "memory_bytes":
        return max(part.memory_bytes for part in mine)
    compute_s, exchange_s = (sum(getattr(part, key) for part in mine) for key in WORKER_SECONDS)
    if what == "samples_per_s":
        return rounded(samples / compute_s)
    if what == "exchange_share":
        return rounded(exchange_s / (compute_s + exchange_s))
    raise LookupError(f"nothing is known about a worker's {what}")


def _exchange_share(view: RecordView, args: Args) -> float:
    parts = [part for step in view.steps for part in step.event.workers.values()]
    compute_s, exchange_s = (sum(getattr(part, key) for part in parts) for key in WORKER_SECONDS)
    return rounded(exchange_s / (compute_s + exchange_s))


def _predicted_ratio(view: RecordView, args: Args) -> float:
    """(event, *path of the predicted seconds): measured median step over predicted step."""
    return rounded(_step_median(view, ()) / _field(view, args))


def _job_total(view: RecordView, args: Args) -> int:
    return job_view.totals(view)[args[0]]


def _part_measured(view: RecordView, args: Args) -> float:
    return job_view.measured(view, args[0], args[1])


def _part_ratio(view: RecordView, args: Args) -> float:
    """(event, "parts", n): measured seconds of a row over those of the trial."""
    part = _field(view, args)
    return rounded(job_view.measured(view, part["name"], "row_s") / part["row_s"])


def _damage(view: RecordView, args: Args) -> Any:
    """("line" or "reason", n)."""
    return getattr(view.damage[args[1]], {"line": "line", "reason": "reason"}[args[0]])


def _odd(view: RecordView, args: Args) -> Any:
    return view.odd[args[1]][{"index": 0, "reason": 1}[args[0]]]


FORMULAS: Mapping[str, Formula] = MappingProxyType(
    {
        "field": Formula(_field, (), "as recorded"),
        "setting": Formula(_setting, (), "name of a setting"),
        "path": Formula(_path, (), "name of a recorded field"),
        "key": Formula(_key, (), "name of a recorded field"),
        "length": Formula(_length, (), "number of entries recorded"),
        "at": Formula(_at, (), "time of running until this event"),
        "moment_size": Formula(_moment_size, (), "equal events in a row, from this one on"),
        "predicted_ratio": Formula(_predicted_ratio, (), "median measured step over this prediction"),
        "moments": Formula(lambda view, args: len(view.moments), ("*",), "rows of the timeline"),
        "moments_shown": Formula(lambda view, args: len(shown_moments(view)), ("*",), "rows on this page"),
        "events": Formula(lambda view, args: len(view.events), ("*",), "events in the record"),
        "status": Formula(lambda view, args: view.status, ("run", "end"), "status of the last end"),
        "duration": Formula(lambda view, args: view.at_s[-1], ("*",), "time of running, without pauses"),
        "faults": Formula(_faults, ("fault",), "faults, without the announcements of drills"),
        "count": Formula(_count_of_kind, ("*",), "number of {0} events"),
        "count_where": Formula(_count_where, ("*",), "number of {0} events whose {1} is {2}"),
        "median": Formula(_median_of, ("*",), "median {1} of the {0} events"),
        "max": Formula(_max_of, ("*",), "largest {1} of the {0} events"),
        "sum": Formula(_sum_of, ("*",), "sum of {1} over the {0} events"),
        "reforms": Formula(lambda view, args: len(_reforms(view)), ("run", "round"), "rounds formed again"),
        "reform_max": Formula(lambda view, args: max(_reforms(view)), ("run", "round"), "longest re-forming"),
        "metric_last": Formula(_metric_last, ("step",), f"mean {{0}} of the last {LAST_STEPS} steps"),
        "metric_name": Formula(lambda view, args: _known(args[0], view.metrics), ("step",), "a metric"),
        "count_name": Formula(
            lambda view, args: _known(args[0], (*view.counts, "samples")), ("step",), "a count"
        ),
        "worker_name": Formula(
            lambda view, args: _known(args[0], view.workers), ("step", "round"), "a worker"
        ),
        "total": Formula(_count_total, ("step",), "{0} in the steps that are in the model"),
        "rate": Formula(_rate, ("step",), "{0} after the first step over the time from it to the last"),
        "step_median": Formula(_step_median, ("step",), "median time of a step"),
        "steps": Formula(lambda view, args: len(view.steps), ("step",), "steps that are in the model"),
        "last_step": Formula(_last_step, ("step",), "newest step"),
        "redone": Formula(lambda view, args: view.redone, ("step",), "steps that were done again"),
        "ledger": Formula(_ledger, ("step",), "samples {0}, as the ledger says at the newest step"),
        "worker": Formula(_worker, ("step",), "{0}: {1}"),
        "workers": Formula(lambda view, args: len(view.workers), ("round", "step"), "workers that took part"),
        "exchange_share": Formula(
            _exchange_share, ("step",), "exchange over compute and exchange, all workers"
        ),
        "job_total": Formula(_job_total, ("rows", "summary"), "{0}, as last told"),
        "job_rate": Formula(
            lambda view, args: job_view.rate(view), ("rows", "summary"), "rows over the time that they took"
        ),
        "part_measured": Formula(_part_measured, ("pools",), "{1} of {0}, as measured in the run"),
        "part_ratio": Formula(
            _part_ratio, ("trial", "pools"), "cost of a row in the run over that in the trial"
        ),
        "damaged": Formula(lambda view, args: len(view.damage), ("*",), "damaged stretches of the log"),
        "damage": Formula(_damage, ("*",), "{0} of a damaged stretch"),
        "odd": Formula(_odd, ("*",), "{0} of an event that lacks fields of its kind"),
    }
)


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise LookupError(f"the record has no {name}")
    return name
