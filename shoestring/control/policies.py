"""The shipped policies by name; `nd` and `dd` have modules of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from shoestring.control.dd import dd
from shoestring.control.decisions import (
    AdjustBatch,
    ControlState,
    Decision,
    Policy,
    PolicyOptions,
    UseBackups,
)
from shoestring.control.gains import told_speeds
from shoestring.control.nd import nd, restart

SAME_SHARE = 1e-9
BACKUP, ND_BACKUP = "backup", "nd-backup"


def none(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Leave everything as it is (the static baseline: every worker the same)."""
    return Decision((), "policy `none` leaves the batch alone")


def fixed(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """The split that the settings name; a worker that they do not name keeps an even share."""
    names = list(state.workers)
    raw = {w: options.fixed[w] if w in options.fixed else 1.0 / len(names) for w in names}
    wanted = {w: value / sum(raw.values()) for w, value in raw.items()}
    if all(abs(wanted[w] - state.shares[w]) < SAME_SHARE for w in names):
        return Decision((), "the split is the one that the settings name")
    return Decision((AdjustBatch(wanted),), "the settings name this split")


def lb_bsp(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Batches by the speed that each worker is expected to have in the next step, whatever the gain.

    LB-BSP (Chen et al., Semi-dynamic load balancing, SoCC 2020), for its CPU clusters; it predicts with a
    neural network, this with the mean of the newest report and the short window. A baseline: decide each step
    (`control.interval_s=0`).
    """
    speeds = {}
    for name, view in state.workers.items():
        if view.last is None or not view.short.reports:
            return Decision((), f"nothing is known of {name} yet")
        speeds[name] = (view.last.samples / view.last.compute_s + view.short.samples_per_s) / 2
    total = sum(speeds.values())
    return Decision(
        (AdjustBatch({w: v / total for w, v in speeds.items()}),), f"expected: {told_speeds(speeds)}"
    )


def backup(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """Even parts, and no waiting for the slowest `options.backups` of each step."""
    count = min(options.backups, len(state.workers) - 1)
    if state.backups == (count, options.grace_share):
        return Decision((), f"steps go on without the slowest {count}")
    action = UseBackups(count, options.grace_share)
    return Decision((action,), f"steps go on without the slowest {count} of {len(state.workers)}")


def nd_backup(now: float, state: ControlState, options: PolicyOptions) -> Decision:
    """`nd`, and no waiting for who is late by more than the grace: a split answers what has been seen, and a
    burst is felt before it is (ours)."""
    decision = nd(now, state, options)
    wanted = (min(options.backups, len(state.workers) - 1), options.grace_share)
    if state.backups == wanted:
        return decision
    reason = f"{decision.reason}; steps go on without the slowest {wanted[0]} where it is late"
    return replace(decision, actions=(*decision.actions, UseBackups(*wanted)), reason=reason)


POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "nd": nd, "dd": dd, "none": none, "fixed": fixed, "lb-bsp": lb_bsp, "restart": restart,
        BACKUP: backup, ND_BACKUP: nd_backup,
    }
)
