"""Waiting for a condition, never for a time."""

from __future__ import annotations

from collections.abc import Callable

from shoestring.base.clock import SystemClock


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
    """Look until it holds; False when it does not in time."""
    clock = SystemClock()
    until_s = clock.now() + timeout_s
    while not condition():
        if clock.now() > until_s:
            return False
        clock.sleep(0.01)
    return True
