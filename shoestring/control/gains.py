"""What the shipped policies share: when a change is worth it, and how it is told (source: ours)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping

from shoestring.control.decisions import AdjustLr, ControlState, Decision, PolicyOptions
from shoestring.control.monitor import WindowView

LR_STEP = 0.01
SHOWN = 8


def worth(
    critical: WindowView, windows: Iterable[WindowView], options: PolicyOptions, times: float = 1.0
) -> float:
    """The gain that a change has to promise: what the settings ask for, and more than noise can feign.

    Args:
        critical: of the worker that the others wait for now.
        windows: of all workers.
        times: of what is asked for otherwise.

    A step waits for its slowest worker, so who that is goes by the largest of n errors: for normal ones some
    sqrt(2 ln n) of them. One more of its own, as the split in force goes back to a measurement, too.
    """
    errors = [window.error for window in windows]
    if not errors:
        return times * options.min_gain
    usual = statistics.median(errors) * math.sqrt(2.0 * math.log(len(errors)))
    return times * max(options.min_gain, options.sure * (critical.error + usual))


def with_lr(decision: Decision, state: ControlState, options: PolicyOptions) -> Decision:
    """Let the learning rate follow the samples that count in a step, by the linear rule (Goyal et al., 2017)
    or by the square root (Krizhevsky, 2014; for Adam: Malladi et al., 2022)."""
    if options.lr == "keep" or not options.reference_batch:
        return decision
    ratio = state.batch / options.reference_batch
    factor = ratio if options.lr == "linear" else math.sqrt(ratio)
    if abs(factor / state.lr_factor - 1.0) < LR_STEP:
        return decision
    reason = f"{decision.reason}; learning rate x {factor:.3g}: {state.batch} samples count"
    return Decision((*decision.actions, AdjustLr(factor)), reason, decision.predicted)


def told_speeds(speeds: Mapping[str, float]) -> str:
    """Worker and samples per second, the first few by name."""
    return listed([f"{worker} {speeds[worker]:.3g}/s" for worker in sorted(speeds)])


def listed(words: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
