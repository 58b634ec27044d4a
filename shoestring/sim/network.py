"""Messages on the virtual clock: lost, doubled, late and out of order, as the seed has it (source: ours).

A `Line` is one caller's channel. It behaves like the worker's seat over a socket: one request at
a time, an error or silence leads to the same request once more, and an answer to an attempt that
was given up is never taken for the answer to a later one. Requests and answers go through the
real encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shoestring.fleet import messages as m

if TYPE_CHECKING:
    from shoestring.sim.world import World

TIMEOUT_S = 0.25
RETRY_S = 0.03
POLL_S = 0.03  # a worker asks every 10 ms; more seldom finds as much and costs less
TRAVEL_S = (0.0005, 0.003)

OnReply = Callable[[m.Reply], None]
Later = Callable[..., None]


class Line:
    """One caller's channel to the coordinator.

    Args:
        world: the simulation.
        who: the caller's name, for the trace.
        later: schedules the caller's own events; a dead caller's never come, a hung one's wait.
    """

    def __init__(self, world: World, who: str, later: Later) -> None:
        self._world = world
        self.who = who
        self._later = later
        self._attempt = 0
        self._data = b""
        self._on_reply: OnReply | None = None
        self._patient = True

    def call(self, request: m.Request, on_reply: OnReply) -> None:
        """Ask until there is an answer other than `Wait`."""
        self._data, self._on_reply, self._patient = m.encode(request), on_reply, True
        self._send()

    def tell(self, request: m.Request, on_reply: OnReply) -> None:
        """Ask once; nothing happens when it does not get through (heartbeats, last words)."""
        self._data, self._on_reply, self._patient = m.encode(request), on_reply, False
        self._send()

    def failed(self, attempt: int) -> None:
        """This attempt is over without an answer; called by the network."""
        if attempt == self._attempt and self._on_reply is not None and self._patient:
            self._attempt += 1
            self._later(RETRY_S, self._send)

    def answered(self, attempt: int, data: bytes) -> None:
        """An answer has arrived; called by the network."""
        if attempt != self._attempt or self._on_reply is None:
            self._world.seen["stale_replies"] += 1
            return
        self._attempt += 1
        reply = m.decode_reply(data)
        if isinstance(reply, m.Wait):
            self._later(max(reply.retry_s, POLL_S), self._send)
            return
        on_reply, self._on_reply = self._on_reply, None
        on_reply(reply)

    def _send(self) -> None:
        self._attempt += 1
        self._world.network.request(self, self._attempt, self._data)

    def fail_later(self, attempt: int, delay_s: float) -> None:
        """Let the caller learn after `delay_s` that this attempt has failed."""
        self._later(delay_s, self.failed, attempt)

    def answer_later(self, attempt: int, delay_s: float, data: bytes) -> None:
        """Let the answer arrive after `delay_s`."""
        self._later(delay_s, self.answered, attempt, data)


class Network:
    """Carries requests to the coordinator's host and answers back."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = world.scenario.network

    def request(self, line: Line, attempt: int, data: bytes) -> None:
        """Carry one request, or lose it, or double it."""
        delays = self._delays()
        if not delays or min(delays) >= TIMEOUT_S:
            line.fail_later(attempt, TIMEOUT_S)
        for delay_s in delays:
            self._world.after(delay_s, self._arrive, line, attempt, data)

    def reply(self, line: Line, attempt: int, reply: m.Reply) -> None:
        """Carry one answer, or lose it; a doubled one is dropped by the line's attempt number."""
        data = m.encode(reply)
        delays = self._delays()
        if not delays or min(delays) >= TIMEOUT_S:
            line.fail_later(attempt, TIMEOUT_S)
        for delay_s in delays:
            line.answer_later(attempt, delay_s, data)

    def refuse(self, line: Line, attempt: int) -> None:
        """The connection broke: nobody listens, or whoever listened died."""
        line.fail_later(attempt, self._world.rng.uniform(*TRAVEL_S))

    def _arrive(self, line: Line, attempt: int, data: bytes) -> None:
        self._world.host.receive(line, attempt, data)

    def _delays(self) -> tuple[float, ...]:
        rng, faults, seen = self._world.rng, self._faults, self._world.seen
        first = rng.uniform(*TRAVEL_S)
        if not faults.late_s or self._world.now > self._world.options.quiet_s:
            return (first,)
        roll = rng.random()
        if roll < faults.loss:
            seen["messages_lost"] += 1
            return ()
        if roll < faults.loss + faults.double:
            seen["messages_doubled"] += 1
            return (first, rng.uniform(0.0, faults.late_s))
        if roll < faults.loss + faults.double + faults.late:
            seen["messages_late"] += 1
            return (rng.uniform(0.0, faults.late_s),)
        return (first,)
