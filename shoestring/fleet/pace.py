"""How far a run is, how large its next batch is, when the next checkpoint is due: pure functions."""

from __future__ import annotations

from shoestring.fleet.config import CheckpointConfig, PaceConfig


def progress(step: int, elapsed_s: float, consumed: float, pace: PaceConfig) -> float:
    """Share of the run that is over, in [0, 1].

    The largest of: steps done over steps wanted, time over budget; where neither bound is set,
    the share of the data that is consumed.
    """
    shares = []
    if pace.steps:
        shares.append(step / pace.steps)
    if pace.budget_s:
        shares.append(elapsed_s / pace.budget_s)
    return min(1.0, max(shares)) if shares else min(1.0, consumed)


def batch_at(progress_share: float, pace: PaceConfig) -> int:
    """Samples of the next global batch: linear growth over the warm-up (Ling, batch-size warm-up)."""
    if not pace.batch_start or progress_share >= pace.batch_warmup:
        return pace.batch
    grown = pace.batch_start + (pace.batch - pace.batch_start) * progress_share / pace.batch_warmup
    return max(1, round(grown))


def remaining_s(progress_share: float, elapsed_s: float) -> float:
    """Seconds left at the speed so far; 0 while nothing is known."""
    return elapsed_s * (1 - progress_share) / progress_share if progress_share > 0 else 0.0


def checkpoint_due(step: int, now: float, last_step: int, last_s: float, config: CheckpointConfig) -> str:
    """Why a checkpoint is due at the boundary after `step`, or an empty string."""
    if step == last_step:
        return ""
    if config.every_steps and step - last_step >= config.every_steps:
        return f"{step - last_step} steps since the last one"
    if config.every_s and now - last_s >= config.every_s:
        return f"{now - last_s:.0f} s since the last one"
    return ""
