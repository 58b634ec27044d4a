"""States of a fleet for tests of policies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoestring.control.decisions import ControlState
from shoestring.control.monitor import SLICES, Cost, Seen, WindowView, WorkerView


def window(speed: float, reports: int = 20, error: float = 0.0) -> WindowView:
    """A window in which a worker did `speed` samples a second, 10 samples a report."""
    if not reports:
        return WindowView(0, 0, 0.0)
    return WindowView(reports, 10 * reports, 10 * reports / speed, error, 1 / speed)


def seen(
    speed: float, reports: int = 20, error: float = 0.0, cost: Cost | None = None, slow: int = 0
) -> WorkerView:
    """A worker of that speed all along; in the last `slow` slices of the long window a quarter of it."""
    one = window(speed, reports, error)
    slices = tuple(window(speed / 4 if SLICES - place <= slow else speed, reports) for place in range(SLICES))
    last = Seen(0.0, 10, 10 / speed) if reports else None
    return WorkerView(one, one, last, slices, cost or (Cost(0.0, 1 / speed, sure=True) if reports else None))


def state(workers: Mapping[str, WorkerView], **fields: Any) -> ControlState:
    """A fleet that shares evenly, 100 samples a step, 16 a pass."""
    names = list(workers)
    given: dict[str, Any] = {
        "shares": dict.fromkeys(names, 1 / len(names)),
        "micro_batch": dict.fromkeys(names, 16),
        "most": dict.fromkeys(names, 16),
        "batch": 100,
    }
    return ControlState(workers=workers, **(given | fields))
