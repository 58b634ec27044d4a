"""A policy that does all that policies can do, at random: what it does must never cost or double a sample."""

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
    UseBackups,
)

NAME = "shoestring.sim.restless:restless"


def restless(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Drawn from the time, so that the same question gets the same answer. With `keep_lr` among the extra
    options it leaves the learning rate alone, so that a model may count samples."""
    rng = random.Random(now)
    names = sorted(state.workers)
    actions: list[Action] = []
    if rng.random() < 0.5:
        raw = {name: rng.choice((0.0, 1.0, rng.random())) for name in names}
        raw = raw if sum(raw.values()) else dict.fromkeys(names, 1.0)
        actions.append(AdjustBatch({name: value / sum(raw.values()) for name, value in raw.items()}))
    if rng.random() < 0.3:
        actions.append(AdjustAccumulation({name: rng.randint(1, state.most[name]) for name in names}))
    if rng.random() < 0.2 and "keep_lr" not in options.extra:
        actions.append(AdjustLr(rng.uniform(0.5, 2.0)))
    if rng.random() < 0.3:
        actions.append(UseBackups(rng.randint(0, len(names) - 1), rng.choice((0.0, 0.3))))
    if rng.random() < 0.2:
        actions.append(Restart(rng.choice(names)))
    elif rng.random() < 0.2 and len(names) > 1:
        actions.append(RemoveWorker(rng.choice(names)))
    if rng.random() < 0.2 and state.room:
        actions.append(AddWorkers(rng.randint(1, state.room)))
    return Decision(tuple(actions), "restless")
