"""Policies that do more than any sane one would, for tests of what actions do to training."""

from __future__ import annotations

import random

from shoestring.control.decisions import (
    Action,
    AddWorkers,
    AdjustAccumulation,
    AdjustBatch,
    AdjustLr,
    ControlState,
    Decision,
    PolicyOptions,
    RemoveWorker,
    Restart,
)


def restless(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Another split and other passes each time."""
    rng = random.Random(now)
    raw = {name: rng.choice((0.0, 0.1, 1.0, rng.random())) for name in state.workers}
    raw = raw if sum(raw.values()) else dict.fromkeys(raw, 1.0)
    shares = {name: value / sum(raw.values()) for name, value in raw.items()}
    passes = {name: rng.randint(1, state.most[name]) for name in state.workers}
    return Decision((AdjustBatch(shares), AdjustAccumulation(passes)), "restless", {"step_time_ratio": 1.0})


def half_rate(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Half the learning rate."""
    return Decision((AdjustLr(0.5),) if state.lr_factor != 0.5 else (), "half")


def new_start(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """A new start for w1, as often as the options say, each time it has taken part for a while."""
    if "w1" not in state.workers or state.workers["w1"].long.reports < 5:
        return Decision((), "not yet")
    times = len(state.restarts["w1"]) if "w1" in state.restarts else 0
    return Decision((Restart("w1"),) if times < options.max_restarts else (), f"restarted {times} times")


def come_and_go(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """One worker more while there is room; then the last of them goes, once."""
    if any(view.long.reports < 5 for view in state.workers.values()):
        return Decision((), "not yet")
    actions: tuple[Action, ...] = ()
    if state.room:
        actions = (AddWorkers(1),)
    elif options.extra["most"] == len(state.workers):
        actions = (RemoveWorker(max(state.workers)),)
    return Decision(actions, f"{len(state.workers)} workers, room for {state.room}")
