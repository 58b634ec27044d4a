"""Learning-rate schedules: pure functions of how far the run is."""

from __future__ import annotations

import math
from typing import Literal

from shoestring.base.config import Config


class ScheduleConfig(Config):
    """How the learning rate moves over the run.

    Attributes:
        kind: `wsd` warms up, stays, and decays linearly over the last `decay` of the run;
            `cosine` and `inverse_sqrt` decay from the end of the warm-up; `constant` only warms up.
        warmup: share of the run with linear growth from 0.
        decay: share of the run at its end (`wsd`).
        floor: factor at the end (`wsd`, `cosine`).
    """

    kind: Literal["wsd", "cosine", "inverse_sqrt", "constant"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.3
    floor: float = 0.0


def factor(progress: float, config: ScheduleConfig) -> float:
    """Factor on the peak learning rate at `progress` in [0, 1].

    wsd: MiniCPM (arXiv 2404.06395, section 4), linear decay; cosine: arXiv 1608.03983, one period;
    inverse_sqrt: sqrt(warmup / progress), as Ling anneals (arXiv 2503.05139).
    """
    if config.warmup > 0 and progress < config.warmup:
        # A first step with rate 0 would be wasted: progress 0 counts as a little way in.
        return max(progress, config.warmup / 100) / config.warmup
    if config.kind == "constant":
        return 1.0
    if config.kind == "wsd":
        left = (1.0 - progress) / config.decay if config.decay > 0 else 1.0
        return config.floor + (1.0 - config.floor) * min(1.0, left)
    if config.kind == "cosine":
        done = (progress - config.warmup) / max(1e-9, 1.0 - config.warmup)
        return config.floor + (1.0 - config.floor) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return math.sqrt(max(config.warmup, 1e-6) / max(progress, config.warmup, 1e-6))
