"""Fits the coefficients of the overlap model to measured steps (source: ours).

Coordinate descent on a grid of factors: few coefficients, a cheap prediction, and no derivative of a maximum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from shoestring.base.errors import ConfigError
from shoestring.cluster.costs import JobCost, OverlapModel, step_cost
from shoestring.cluster.strategies import Layout, Strategy
from shoestring.cluster.topology import Cluster
from shoestring.cluster.wires import wires_of

FACTORS = (0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 4.0)
FITTED = ("start_s", "busy_s_per_byte", "update_s_per_parameter", "wire_share")
SWEEPS = 8
WIRE_SHARE_RANGE = (0.3, 1.2)


@dataclass(frozen=True)
class Measured:
    """One strategy that was run: what the planner was told, and the step time that came of it, in s."""

    job: JobCost
    strategy: Strategy
    layout: Layout
    cluster: Cluster
    step_s: float


@dataclass(frozen=True)
class Calibration:
    """Fitted coefficients, and the median of |predicted / measured - 1| before and after."""

    model: OverlapModel
    error_before: float
    error: float


def calibrate(measured: Sequence[Measured], start: OverlapModel) -> Calibration:
    """Coefficients that predict the measured steps best, by the mean of |log(predicted / measured)|.

    Args:
        start: where to begin; coefficients of zero stay zero.

    Raises:
        ConfigError: nothing was measured.
    """
    if not measured:
        raise ConfigError("there are no measured steps to calibrate with", "run some strategies first")
    wires = [wires_of(one.cluster, one.layout) for one in measured]

    def ratios(model: OverlapModel) -> list[float]:
        return [
            step_cost(one.job, one.strategy, wire, one.cluster, model).step_s / one.step_s
            for one, wire in zip(measured, wires, strict=True)
        ]

    def loss(model: OverlapModel) -> float:
        return sum(abs(math.log(ratio)) for ratio in ratios(model)) / len(measured)

    best, least = start, loss(start)
    for _ in range(SWEEPS):
        before = least
        for name in FITTED:
            for factor in FACTORS:
                tried = _scaled(best, name, factor)
                if (cost := loss(tried)) < least:
                    best, least = tried, cost
        if least > 0.999 * before:
            break
    return Calibration(best, _error(ratios(start)), _error(ratios(best)))


def _scaled(model: OverlapModel, name: str, factor: float) -> OverlapModel:
    value = factor * float(getattr(model, name))
    if name == "wire_share":
        low, high = WIRE_SHARE_RANGE
        value = min(max(value, low), high)
    return model.model_copy(update={name: value})


def _error(ratios: Sequence[float]) -> float:
    return median(abs(ratio - 1) for ratio in ratios)
