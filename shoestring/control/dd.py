"""The policy for machines of their own that differ (source: AntDT, arXiv 2404.09679, DD)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from shoestring.control.balance import Part, balance
from shoestring.control.decisions import (
    Action,
    AdjustAccumulation,
    AdjustBatch,
    ControlState,
    Decision,
    PolicyOptions,
)
from shoestring.control.gains import listed, with_lr, worth

WHOLE = 1e-9
REFINE = 0.5
"""Of the gain that a change has to promise under other policies: what is known of machines of their own gets
better while the window fills, and a split anew costs nothing."""


@dataclass(frozen=True)
class _Split:
    """Samples, passes and samples of a pass of each worker, and the seconds of the slowest."""

    samples: Mapping[str, int]
    passes: Mapping[str, int]
    micro: Mapping[str, int]
    took_s: float


def dd(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Choose batch size b_i of a pass and passes C_i of each worker, exactly.

    minimise max_i C_i T_i(b_i) subject to sum C_i b_i = B and b_i within memory (AntDT, DD); see `balance`.
    Where all passes had one size, T cannot be told from it: smaller passes are taken for a while to learn it
    (ours).
    """
    unknown = [n for n, v in state.workers.items() if v.cost is None or v.long.reports < options.min_reports]
    if len(state.workers) < 2 or unknown:
        return Decision((), f"too little is known of {listed(unknown) or 'others'} to compare")
    if (learn := _to_learn(state, options)) is not None:
        return learn
    split = _best(state, options)
    slowest = max(state.workers, key=lambda name: _seconds_now(name, state))
    now_s = _seconds_now(slowest, state)
    gain, least = (
        1.0 - split.took_s / now_s,
        worth(state.workers[slowest].long, (v.long for v in state.workers.values()), options, REFINE),
    )
    predicted = {"step_time_ratio": split.took_s / now_s, "compute_s": split.took_s}
    if gain < least:
        reason = f"another split would save {gain:.1%} of the compute time, below {least:.1%}"
        return with_lr(Decision(_whole_passes(state), reason, predicted), state, options)
    told = listed([f"{n} {split.passes[n]} x {split.micro[n]}" for n in state.workers])
    shares = {name: samples / state.batch for name, samples in split.samples.items()}
    reason = f"passes x samples {told}: saves {gain:.1%} of the compute time"
    return with_lr(
        Decision((AdjustBatch(shares), AdjustAccumulation(split.micro)), reason, predicted), state, options
    )


def _best(state: ControlState, options: PolicyOptions) -> _Split:
    names = list(state.workers)
    parts = [_part(n, state, min(options.least_pass, state.batch // len(names))) for n in names]
    samples = dict(zip(names, balance(parts, state.batch), strict=True))
    passes = {n: math.ceil(samples[n] / state.most[n]) for n in names}
    return _Split(
        samples,
        passes,
        {n: math.ceil(samples[n] / passes[n]) if passes[n] else state.most[n] for n in names},
        max(part.seconds(samples[name]) for name, part in zip(names, parts, strict=True)),
    )


def _to_learn(state: ControlState, options: PolicyOptions) -> Decision | None:
    """Smaller passes for those whose passes have all been of one size, unless they take them already."""
    smaller = {}
    for name, view in state.workers.items():
        assert view.cost is not None
        size = min(state.most[name], math.ceil(_samples(name, state) - WHOLE))
        half = max(options.least_pass, size // 2)
        if not view.cost.sure and state.micro_batch[name] >= size and half < size:
            smaller[name] = half
    if not smaller:
        return None
    micro = {name: smaller[name] if name in smaller else state.micro_batch[name] for name in state.workers}
    return Decision(
        (AdjustAccumulation(micro),), f"smaller passes, to learn what one costs: {listed(list(smaller))}"
    )


def _part(name: str, state: ControlState, least: int) -> Part:
    cost = state.workers[name].cost
    assert cost is not None
    return Part(cost.start_s, cost.per_sample_s, state.most[name], least)


def _samples(name: str, state: ControlState) -> float:
    return state.shares[name] * state.batch


def _seconds_now(name: str, state: ControlState) -> float:
    cost = state.workers[name].cost
    assert cost is not None
    return cost.of(_samples(name, state), _passes_now(name, state))


def _passes_now(name: str, state: ControlState) -> int:
    return math.ceil(_samples(name, state) / state.micro_batch[name] - WHOLE)


def _whole_passes(state: ControlState) -> tuple[Action, ...]:
    """Back to the largest passes, where somebody takes more of them than it needs."""
    needed = {n: math.ceil(_samples(n, state) / state.most[n] - WHOLE) for n in state.workers}
    if all(_passes_now(name, state) <= needed[name] for name in state.workers):
        return ()
    return (AdjustAccumulation(dict(state.most)),)
