"""Policies: pure functions (now, view, shares, options) -> Decision with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shoestring.base.config import Config
from shoestring.control.monitor import WorkerView


@dataclass(frozen=True)
class Decision:
    """Shares of the global batch per worker (they sum to 1), or None to leave them; and why."""

    shares: dict[str, float] | None
    reason: str
    predicted: dict[str, float]


class Policy(Protocol):
    """A pure function; the same arguments give the same decision."""

    def __call__(
        self, now: float, view: dict[str, WorkerView], shares: dict[str, float], options: PolicyOptions
    ) -> Decision:
        """Decide from what is seen at `now`."""
        ...


class PolicyOptions(Config):
    """What the shipped policies go by.

    `min_reports`: reports in the short window before a worker's speed is believed.
    `min_gain`: predicted share of the step time that a change must save.
    `min_share`: no worker gets less than this part of an even share.
    `fixed`: worker -> part of the global batch, for the policy of that name; parts are scaled to sum to 1.
    """

    min_reports: int = 2
    min_gain: float = 0.03
    min_share: float = 0.05
    fixed: dict[str, float] = {}


def even(
    now: float, view: dict[str, WorkerView], shares: dict[str, float], options: PolicyOptions
) -> Decision:
    """Every worker the same (the static baseline)."""
    return Decision(None, "policy `even` leaves the batch alone", {})


def fixed(
    now: float, view: dict[str, WorkerView], shares: dict[str, float], options: PolicyOptions
) -> Decision:
    """The split that the settings name; a worker that they do not name keeps an even share."""
    raw = {w: options.fixed[w] if w in options.fixed else 1.0 / len(view) for w in view}
    wanted = {w: value / sum(raw.values()) for w, value in raw.items()}
    if all(abs(wanted[w] - shares[w]) < 1e-9 for w in view):
        return Decision(None, "the split is the one that the settings name", {})
    return Decision(wanted, "the settings name this split", {})


def proportional(
    now: float, view: dict[str, WorkerView], shares: dict[str, float], options: PolicyOptions
) -> Decision:
    """Batches in proportion to speed: the ND policy's answer to transient stragglers.

    minimise max_i(b_i / v_i) subject to sum b_i = B gives b_i = B v_i / sum v, with v_i the
    samples per second of the short window (AntDT, ND). Thresholds are ours. A worker that has
    not been seen yet counts as fast as the mean of the others.
    """
    known = {w: v.short.samples_per_s for w, v in view.items() if v.short.reports >= options.min_reports}
    if len(view) < 2 or not known:
        return Decision(None, f"speeds known of {len(known)} of {len(view)} workers: too few to compare", {})
    mean = sum(known.values()) / len(known)
    speeds = {worker: known[worker] if worker in known else mean for worker in view}
    wanted = _floored({w: v / sum(speeds.values()) for w, v in speeds.items()}, options.min_share / len(view))
    now_s = max(shares[w] / speeds[w] for w in view)
    then_s = max(wanted[w] / speeds[w] for w in view)
    gain = 1.0 - then_s / now_s
    predicted = {"step_time_ratio": then_s / now_s}
    if gain < options.min_gain:
        return Decision(
            None,
            f"a new split would save {gain:.1%} of the compute time, below {options.min_gain:.0%}",
            predicted,
        )
    named = ", ".join(f"{w} {speeds[w]:.3g}/s" for w in sorted(speeds))
    return Decision(
        wanted, f"samples per second {named}: split by speed saves {gain:.1%} of the compute time", predicted
    )


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


def split(total: int, shares: dict[str, float]) -> dict[str, int]:
    """`total` samples by shares, whole numbers that sum to `total` (largest remainder; ties by name)."""
    exact = {worker: total * share for worker, share in shares.items()}
    parts = {worker: int(value) for worker, value in exact.items()}
    by_remainder = sorted(exact, key=lambda worker: (parts[worker] - exact[worker], worker))
    for worker in by_remainder[: total - sum(parts.values())]:
        parts[worker] += 1
    return parts
