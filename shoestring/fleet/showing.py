"""What a person wants to see live, from the coordinator's parts (source: ours)."""

from __future__ import annotations

from shoestring.data.ledger import Counts
from shoestring.fleet import messages as m
from shoestring.fleet import pace
from shoestring.fleet.membership import Membership
from shoestring.fleet.persisted import Persisted
from shoestring.fleet.steering import Steering
from shoestring.fleet.stepping import Stepper


def status(
    now: float,
    progress: float,
    counts: Counts,
    members: Membership,
    steering: Steering,
    stepper: Stepper,
    kept: Persisted,
    told: tuple[str, ...],
) -> m.Status:
    """The run as of `now`.

    Args:
        progress: share of the run that is over, in [0, 1].
        told: messages since the last one.
    """
    workers: dict[str, dict[str, float | str]] = {
        name: {
            "state": members[name].state,
            "phase": members[name].phase,
            **steering.speed(now, name),
        }
        for name in members.named("absent", "starting", "waiting", "active", "given_up")
    }
    return m.Status(
        step=kept.confirmed,
        progress=progress,
        elapsed_s=kept.elapsed_s,
        eta_s=pace.remaining_s(progress, kept.elapsed_s),
        metrics=stepper.metrics,
        rates=stepper.rates(),
        workers=workers,
        todo=counts.todo,
        doing=counts.doing,
        done=counts.done,
        dead=counts.dead,
        round_id=kept.round_id,
        messages=told,
    )
