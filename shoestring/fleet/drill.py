"""A fault on purpose, for demonstrations and rehearsals: a pure function (source: ours)."""

from __future__ import annotations

from shoestring.fleet.config import DrillConfig


def due(progress: float, active: tuple[str, ...], done: bool, config: DrillConfig) -> tuple[str, str]:
    """(worker to kill, reason); an empty name while no fault is due."""
    if not config.kill or done or progress < config.at_progress or config.kill not in active:
        return "", ""
    return (
        config.kill,
        f"drill: {config.kill} gets SIGKILL at {progress:.0%} of the run, to show that nothing is lost",
    )
