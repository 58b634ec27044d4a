"""Whom a step does not wait for, where a policy has asked for backup workers (source: Chen et al., arXiv
1604.00981; that late ones say so themselves, keep what they have, and get a grace is ours)."""

from __future__ import annotations

from shoestring.fleet.messages import Verdict
from shoestring.fleet.rounds import RoundState

FIRST_S, SLOWEST_S = 0.005, 1.0
PATIENCE = 0.1
"""A late worker asks again after that part of the time since the step was planned."""


def note_ready(now: float, round_: RoundState, worker: str, step: int) -> bool:
    """A worker has computed its part; repeated messages change nothing. Whether this was the first."""
    if step <= round_.confirmed() or round_.was_ready(worker, step):
        return False
    round_.ready.setdefault(step, {})[worker] = now
    return True


def verdict(now: float, round_: RoundState, worker: str, step: int, backups: tuple[int, float]) -> Verdict:
    """Whether the others are through and go on without this worker.

    Args:
        backups: how many are not waited for; their grace, as a part of the time that the others took.
    """
    plan = round_.plans[step] if step in round_.plans else None
    if plan is None:
        return Verdict(False, SLOWEST_S)  # a late copy: the step is long over
    retry_s = min(max(FIRST_S, PATIENCE * (now - plan.at_s)), SLOWEST_S)
    count, grace = backups
    busy = {name for name, samples in plan.samples.items() if samples}
    ready = round_.ready[step] if step in round_.ready else {}
    through = sorted(at_s for name, at_s in ready.items() if name in busy)
    enough = max(1, len(busy) - count)
    if worker in ready or worker not in busy or not count or len(through) < enough:
        return Verdict(False, retry_s)
    since_s = through[enough - 1]
    left_s = since_s + grace * (since_s - plan.at_s) - now
    return Verdict(left_s <= 0.0, min(retry_s, max(left_s, FIRST_S)))
