"""A fleet on the transport that its settings name (source: ours)."""

from __future__ import annotations

from shoestring.base.clock import Clock
from shoestring.fleet.inprocess import run_inprocess
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.local import run_local
from shoestring.fleet.supervisor import Interrupts, OnStatus


def run_on(
    transport: str, launch: Launch, clock: Clock, on_status: OnStatus, interrupts: Interrupts
) -> Outcome:
    """Run a fleet until its outcome; the caller holds the run lock.

    Args:
        transport: `inprocess`, `local` or `ray`.

    Raises:
        FleetError: it could not be started.
    """
    if transport == "inprocess":
        return run_inprocess(launch, clock, on_status, interrupts)
    if transport == "ray":
        from shoestring.fleet.ray_fleet import run_ray  # only this path needs ray

        return run_ray(launch, clock, on_status, interrupts)
    return run_local(launch, clock, on_status, interrupts)
