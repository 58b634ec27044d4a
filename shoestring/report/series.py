"""Curves for charts: long series cut down to what an eye can see, nothing hidden (source: ours).

A bin holds neighbouring steps; it shows their mean and their extremes, so a spike of one step
stays visible however long the run was.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from shoestring.report.record_view import RecordView, Step

BINS = 240
WORKER_BINS = 160
SMOOTH_SHARE = 0.04
REASON_CHARS = 220
"""Of a reason that a chart shows."""
Row = dict[str, Any]


def rounded(value: float) -> float:
    """Five significant digits: what a chart can show, and a page can afford."""
    return float(f"{value:.5g}")


def bins(count: int, limit: int) -> list[range]:
    """0..count cut into at most `limit` stretches of about the same length."""
    pieces = min(limit, count)
    return [range(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


def metric_curve(view: RecordView, name: str) -> list[Row]:
    """Rows of active time, step, mean, lowest and highest value a bin, and a trailing mean.

    The trailing mean is over the last 4% of the steps (at least one).
    """
    known = [(step, value) for step in view.steps if (value := _metric(step, name)) is not None]
    width = max(1, round(len(known) * SMOOTH_SHARE))
    sums = [0.0, *itertools.accumulate(value for _, value in known)]
    rows = []
    for group in bins(len(known), BINS):
        inside = [known[i][1] for i in group]
        last, start = known[group[-1]][0], max(0, group.stop - width)
        rows.append(
            {
                "at_s": rounded(last.at_s),
                "step": last.event.step,
                "value": rounded(statistics.fmean(inside)),
                "low": rounded(min(inside)),
                "high": rounded(max(inside)),
                "smooth": rounded((sums[group.stop] - sums[start]) / (group.stop - start)),
            }
        )
    return rows


def rate_curve(view: RecordView, name: str) -> list[Row]:
    """Rows of active time, step and counts per second over the last 4% of the steps (at least 5).

    The seconds are active seconds, so the time that a fault cost is in the rate.
    """
    steps = view.steps
    width = max(5, round(len(steps) * SMOOTH_SHARE))
    sums = list(itertools.accumulate(count_of(step, name) for step in steps))
    rows = []
    for group in bins(len(steps), BINS):
        last, start = group[-1], max(0, group[-1] - width)
        span_s = steps[last].at_s - steps[start].at_s
        if span_s > 0:
            per_s = (sums[last] - sums[start]) / span_s
            at = {"at_s": rounded(steps[last].at_s), "step": steps[last].event.step}
            rows.append({**at, "per_s": rounded(per_s)})
    return rows


def worker_curve(view: RecordView) -> list[Row]:
    """Rows of active time, step, round, worker, and medians of its batch time and samples over a bin."""
    rows = []
    for group in bins(len(view.steps), WORKER_BINS):
        inside = [view.steps[i] for i in group]
        last = inside[-1]
        for worker in view.workers:
            parts = [step.event.workers[worker] for step in inside if worker in step.event.workers]
            if parts:
                rows.append(
                    {
                        "at_s": rounded(last.at_s),
                        "step": last.event.step,
                        "round": last.event.round_id,
                        "worker": worker,
                        "compute_s": rounded(statistics.median(part.compute_s for part in parts)),
                        "samples": rounded(statistics.median(part.samples for part in parts)),
                    }
                )
    return rows


def time_split(view: RecordView) -> list[Row]:
    """Rows of worker, what (`compute`, `exchange`, `other`), seconds over all its steps.

    `other` is what is left of the steps' time: loading, the update, waiting for orders.
    """
    rows = []
    for worker in view.workers:
        steps = [step for step in view.steps if worker in step.event.workers]
        compute_s = sum(step.event.workers[worker].compute_s for step in steps)
        exchange_s = sum(step.event.workers[worker].exchange_s for step in steps)
        other_s = max(0.0, sum(step.event.took_s for step in steps) - compute_s - exchange_s)
        for order, (what, spent_s) in enumerate(
            (("compute", compute_s), ("exchange", exchange_s), ("other", other_s))
        ):
            rows.append({"worker": worker, "what": what, "spent_s": rounded(spent_s), "order": order})
    return rows if any(row["spent_s"] for row in rows) else []


def count_of(step: Step, name: str) -> float:
    """A count of a step by name; `samples` are those of all workers."""
    if name in step.event.counts:
        return step.event.counts[name]
    return float(sum(part.samples for part in step.event.workers.values())) if name == "samples" else 0.0


def _metric(step: Step, name: str) -> float | None:
    return step.event.metrics[name] if name in step.event.metrics else None
