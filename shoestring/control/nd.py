"""The policy for machines that others use too (source: AntDT, arXiv 2404.09679, ND)."""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left

from shoestring.control.decisions import AdjustBatch, ControlState, Decision, PolicyOptions, Restart
from shoestring.control.gains import listed, told_speeds, with_lr, worth

SEEN = 0.5
"""Part of the workers that must have been seen, in a slice of the long window or at all: or none is usual."""
FIRST_GAIN = 0.5
"""What a split after a single report of each worker has to save: noise does not make a step twice as long."""
AT_ONCE = 0.1
"""Part of the workers that are restarted together at most: the fleet pauses once for all of them."""
NO_BETTER = 1.2
"""Who is not that many times faster than before its last restart has not been helped by it."""


def nd(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Batches in proportion to speed, and a new start for who stays slow.

    Transient: minimise max_i(b_i / v_i) subject to sum b_i = B gives b_i = B v_i / sum v, with v_i the
    samples per second of the short window. Persistent: a worker that is slow in the whole long window is
    restarted, with a cap and a cool-down (AntDT, ND). By speed and not by batch time, which is equal as soon
    as the split is right. Thresholds, the slices of the long window and the weighing of a restart against
    what is left of the run are ours.
    """
    split = with_lr(_proportional(state, options), state, options)
    return _both(_restart(now, state, options), split)


def restart(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """A new start for who stays slow, as `nd` has it, and nothing else."""
    return _restart(now, state, options) or Decision((), "nobody is slow for good")


def _both(restarts: Decision | None, split: Decision) -> Decision:
    """Where many are restarted over hours, splits must not wait until that is over."""
    if restarts is None:
        return split
    if not split.actions:
        return restarts
    ratios = [
        one.predicted["step_time_ratio"] for one in (restarts, split) if "step_time_ratio" in one.predicted
    ]
    return Decision(
        (*split.actions, *restarts.actions),
        f"{restarts.reason}; {split.reason}",
        {"step_time_ratio": math.prod(ratios)},
    )


def _proportional(state: ControlState, options: PolicyOptions) -> Decision:
    views = state.workers
    speeds = {w: v.short.samples_per_s for w, v in views.items() if v.short.reports}
    known = {
        w: speed
        for w, speed in speeds.items()
        if views[w].short.reports >= options.min_reports or views[w].short.changed
    }
    if len(known) < len(speeds) and len(speeds) > SEEN * len(views):
        # Some have told too little. What is plain is plain.
        early = _split(speeds, state, options, FIRST_GAIN)
        if early.actions or not known:
            return early
    return _split(known, state, options, options.min_gain)


def _split(known: dict[str, float], state: ControlState, options: PolicyOptions, asked: float) -> Decision:
    """By the speeds that are known, the others taken for the mean, if it saves as much as is asked."""
    views, shares = state.workers, state.shares
    if len(views) < 2 or not known:
        return Decision((), f"speeds known of {len(known)} of {len(views)} workers: too few to compare")
    mean = sum(known.values()) / len(known)
    speeds = {worker: known[worker] if worker in known else mean for worker in views}
    total = sum(speeds.values())
    wanted = _floored({w: v / total for w, v in speeds.items()}, options.min_share / len(views))
    slowest = max(views, key=lambda w: shares[w] / speeds[w])
    now_s = shares[slowest] / speeds[slowest]
    then_s = max(wanted[w] / speeds[w] for w in views)
    gain = 1.0 - then_s / now_s
    least = max(asked, worth(views[slowest].short, (views[w].short for w in known), options))
    predicted = {"step_time_ratio": then_s / now_s}
    if gain < least:
        reason = f"a new split would save {gain:.1%} of the compute time, below {least:.1%}"
        return Decision((), reason, predicted)
    reason = f"samples per second {told_speeds(speeds)}: split by speed saves {gain:.1%} of the compute time"
    return Decision((AdjustBatch(wanted),), reason, predicted)


def _floored(shares: dict[str, float], floor: float) -> dict[str, float]:
    """Raise shares below `floor` to it and take what that costs from the others in proportion."""
    low: set[str] = set()
    while True:
        rest = sum(share for w, share in shares.items() if w not in low)
        left = 1.0 - floor * len(low)
        raised = {w: floor if w in low else share * left / rest for w, share in shares.items()}
        # Paying for the others may push one more below the floor; each turn fixes at least one.
        below = {w for w, share in raised.items() if share < floor}
        if not below - low:
            return raised
        low |= below


def _restart(now: float, state: ControlState, options: PolicyOptions) -> Decision | None:
    """A new start for the slowest of those that are slow for good, where it pays for each of them."""
    slow = {name: ratio for name, ratio in _slowness(state, options).items() if ratio > options.slow_factor}
    if not slow:
        return None
    speeds = {w: v.long.samples_per_s for w, v in state.workers.items()}
    total = sum(speeds.values())
    usual = statistics.median(v for w, v in speeds.items() if w not in slow)  # not all are slower than most
    cost_s = state.restart_s or options.restart_cost_s

    def ratio(*names: str) -> float:
        return total / (total + sum(usual - speeds[name] for name in names))

    chosen = [
        name
        for name in sorted(slow, key=lambda one: (-slow[one], one))
        if _may_help(now, name, state, options) and state.remaining_s * (1.0 - ratio(name)) > cost_s
    ][: max(1, int(AT_ONCE * len(speeds)))]
    if not chosen:
        return None
    saved_s = state.remaining_s * (1.0 - ratio(*chosen))
    saves = "much of what is left" if math.isinf(saved_s) else f"{saved_s:.0f} s of what is left"
    return Decision(
        tuple(Restart(name) for name in chosen),
        f"{_who(chosen)} been at least {slow[chosen[-1]]:.1f} times slower than the others all through the "
        f"long window: a new start costs some {cost_s:.0f} s and may save {saves}",
        {"step_time_ratio": ratio(*chosen)},
    )


def _who(names: list[str]) -> str:
    return f"{names[0]} has" if len(names) == 1 else f"{listed(names)} have"


def _may_help(now: float, name: str, state: ControlState, options: PolicyOptions) -> bool:
    before = state.restarts[name] if name in state.restarts else ()
    if len(before) >= options.max_restarts:
        return False
    if not before:
        return True
    speed = state.workers[name].long.samples_per_s
    return now - before[-1].at_s >= options.cooldown_s and speed >= NO_BETTER * before[-1].samples_per_s


def _slowness(state: ControlState, options: PolicyOptions) -> dict[str, float]:
    """Worker -> how many times slower than the median of the others, where that is the least: by its quickest
    report in each slice, and by its newest one. Who has bursts of slowness has quick reports between them.
    Only workers that were seen in every slice, as most others were."""
    views, found = state.workers, {}
    for name, view in views.items():
        if (
            view.last is not None
            and view.slices
            and min(s.reports for s in view.slices) >= options.min_reports
        ):
            found[name] = math.inf
    if not found or len(views) < 2:
        return {}
    columns = [
        {name: view.slices[place].quickest_s for name, view in views.items() if len(view.slices) > place}
        for place in range(len(views[next(iter(found))].slices))
    ]
    columns.append({n: v.last.compute_s / v.last.samples for n, v in views.items() if v.last is not None})
    for column in columns:
        ordered = sorted(value for value in column.values() if value < math.inf)
        if len(ordered) - 1 < max(1.0, SEEN * (len(views) - 1)):
            return {}
        for name in found:
            found[name] = min(found[name], column[name] / _median_without(ordered, column[name]))
    return found


def _median_without(ordered: list[float], own: float) -> float:
    """Median of the ordered values but for one that equals `own`."""
    at, left = bisect_left(ordered, own), len(ordered) - 1

    def value(place: int) -> float:
        return ordered[place if place < at else place + 1]

    return (value((left - 1) // 2) + value(left // 2)) / 2
