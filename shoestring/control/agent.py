"""The agent in the worker: applies the controller's actions at a safe point of the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shoestring.base.errors import FleetError

Handler = Callable[[Mapping[str, Any]], None]


class Agent:
    """Maps the kind of an action to what applies it.

    Args:
        handlers: action kind -> function of the action's fields. The loop calls `apply` only
            between two steps, when no gradient is half summed.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)

    def apply(self, actions: tuple[dict[str, Any], ...]) -> None:
        """Apply the actions in order.

        Raises:
            FleetError: an action that this worker does not know; ignoring it would let workers differ.
        """
        for action in actions:
            kind = str(action["kind"])
            if kind not in self._handlers:
                raise FleetError(
                    f"the controller sent the action {kind!r}, which this worker does not know",
                    "run the same version of shoestring on every host",
                )
            self._handlers[kind](action)
