"""A run from its first event to its last: locked, recorded, ended whatever happens (source: ours)."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shoestring import __version__
from shoestring.base.clock import Clock
from shoestring.base.errors import ShoestringError, settings_without_passwords
from shoestring.base.record import RunRecord, read_events
from shoestring.cluster.topology import usable_cores, usable_memory_bytes
from shoestring.fleet.launch import Outcome
from shoestring.fleet.lock import RunLock
from shoestring.fleet.rundirs import About

EVENTS = "events.jsonl"


def recorded(
    run_dir: Path,
    facts: Mapping[str, Any],
    clock: Clock,
    say: Callable[[str], None],
    body: Callable[[RunRecord], Outcome],
) -> Outcome:
    """Do a run's work under its lock. Its record begins with `run` and the facts, and ends with `end`,
    whatever happens.

    Raises:
        ShoestringError: what the body raised, recorded; RunError: the run is in progress already.
    """
    with RunLock(run_dir):
        record = RunRecord(run_dir / EVENTS, "supervisor", clock)
        _name_damage(run_dir, record, say)
        record.append("run", **facts)
        try:
            outcome = body(record)
        except ShoestringError as error:
            record.append("end", **asdict(Outcome("failed", error.what, error.todo)))
            raise
        except KeyboardInterrupt:
            outcome = Outcome("interrupted")
        record.append("end", **asdict(outcome))
        record.close()
        return outcome


def facts_of(
    about: About,
    resumed: bool,
    settings: Mapping[str, Any],
    seed: int,
    packages: Iterable[str],
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What the first event of a run says of it.

    Args:
        packages: whose versions matter.
        machine: what is known of it beside system, cores and memory.
    """
    return {
        "name": about.name,
        "recipe": about.recipe,
        "job": about.job,
        "resumed": resumed,
        "settings": settings_without_passwords(settings),
        "seed": seed,
        "versions": {"shoestring": __version__, "python": platform.python_version()}
        | {package: version(package) for package in packages},
        "machine": {
            "system": platform.platform(),
            "cores": usable_cores(),
            "memory_bytes": usable_memory_bytes(),
        }
        | dict(machine or {}),
    }


def _name_damage(run_dir: Path, record: RunRecord, say: Callable[[str], None]) -> None:
    """A damaged log is said, not hidden; the events that are whole still count."""
    damage = read_events(run_dir / EVENTS).damage
    if damage:
        lines = ", ".join(str(one.line) for one in damage[:5])
        text = (
            f"the event log has {len(damage)} damaged lines ({lines}): {damage[0].reason}; they are skipped"
        )
        record.append("fault", reason=text)
        say(text)
