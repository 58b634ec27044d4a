"""Asks, while the main thread computes, whether the others go on without it (source: ours)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoestring.base.errors import TransportError
from shoestring.fleet import messages as m

if TYPE_CHECKING:
    from shoestring.fleet.channel import Channel

FIRST_ASK_S = 0.005
AWAY_S = 0.25


class Lookout:
    """A thread with a channel of its own, started when it is first needed.

    Args:
        name, incarnation: of this worker.
        open_channel: makes a channel to the coordinator.

    Attributes:
        late: whether the step that is watched goes on without this worker; read by the main thread.
    """

    def __init__(self, name: str, incarnation: int, open_channel: Callable[[], Channel]) -> None:
        self.late = False
        self._who = (name, incarnation)
        self._open_channel = open_channel
        self._changed = threading.Condition()
        self._watched: tuple[int, int] | None = None
        self._over = False
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, round_id: int, step: int) -> Iterator[None]:
        """Ask about this step as long as the block lasts."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)
            self._thread.start()
        self._watch((round_id, step))
        try:
            yield
        finally:
            self._watch(None)

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._over = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def _watch(self, step: tuple[int, int] | None) -> None:
        with self._changed:
            self.late = False
            self._watched = step
            self._changed.notify()

    def _run(self) -> None:
        channel, wait_s = self._open_channel(), FIRST_ASK_S
        while True:
            with self._changed:
                before = self._watched
                self._changed.wait(wait_s if before is not None and not self.late else None)
                if self._over:
                    break
                watched = self._watched
            if watched is None or watched != before:
                wait_s = FIRST_ASK_S
                continue
            wait_s = self._ask(channel, watched)
        channel.close()

    def _ask(self, channel: Channel, watched: tuple[int, int]) -> float:
        """One question; returns when to ask the next."""
        try:
            reply = channel.call(m.Lagging(*self._who, *watched))
        except TransportError:
            return AWAY_S  # the coordinator is away or coming back
        if not isinstance(reply, m.Verdict):
            return AWAY_S  # the round is over: the main thread is told when it asks
        with self._changed:
            if self._watched != watched:
                return FIRST_ASK_S  # that was about a step that is over
            self.late = reply.late
        return reply.retry_s
