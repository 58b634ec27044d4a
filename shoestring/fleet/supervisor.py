"""The supervisor: a thin, single-threaded executor in the process that the user started (source: ours).

It decides nothing about workers: it tells the coordinator who runs and who ended, and starts and
kills what the answer says. Only the coordinator itself is restarted on its own account, with the
policy that workers are restarted by.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Protocol

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.launch import Outcome
from shoestring.fleet.restarts import Failure, decide, headline, signature

STATUS_S = 0.25
BUSY_TICK_S = 0.02
CALM_TICK_S = 0.2
FAREWELL_S = 10.0
HEALTHY_S = 30.0

OnStatus = Callable[[m.Status], None]


@dataclass(frozen=True)
class CoordinatorEnd:
    """How the coordinator ended; `fatal` when a restart would not mend it."""

    what: str
    todo: str
    fatal: bool


class Host(Protocol):
    """The mechanism of one transport: where processes run and how the coordinator is reached."""

    def start_coordinator(self, first: bool) -> None:
        """Start it; `first` when no worker of this run can be alive."""
        ...

    def coordinator_end(self) -> CoordinatorEnd | None:
        """How it ended, once; None while it runs."""
        ...

    def kill_coordinator(self) -> None:
        """Kill it; its end is reported by `coordinator_end`."""
        ...

    def send(self, tick: m.SupervisorTick) -> None:
        """Send without waiting. Raises TransportError."""
        ...

    def receive(self, wait_s: float) -> m.SupervisorOrders | None:
        """The answer, or None when `wait_s` passed or the coordinator ended. Raises TransportError."""
        ...

    def pause(self, wait_s: float) -> None:
        """Wait; shorter when a child ends."""
        ...

    def spawn(self, name: str, incarnation: int) -> None:
        """Start a worker process. Raises FleetError."""
        ...

    def kill(self, name: str, incarnation: int) -> None:
        """Kill a worker process, if it still runs."""
        ...

    def alive(self) -> tuple[tuple[str, int], ...]:
        """Worker processes whose end was not seen yet."""
        ...

    def unplaced(self) -> tuple[tuple[str, int], ...]:
        """Those of `alive` that wait for a machine with room for them."""
        ...

    def notices(self) -> tuple[tuple[str, str], ...]:
        """Workers whose machine will be taken away, and how that is known."""
        ...

    def reap(self) -> tuple[m.Exit, ...]:
        """Worker processes whose end was not reported by an earlier call."""
        ...

    def close(self) -> None:
        """Kill what is left, remove what was made."""
        ...


class Interrupts:
    """Counts SIGINT and SIGTERM while entered; the first asks for an orderly stop, the second ends all.

    `abrupt`: from the second on, raise KeyboardInterrupt where the program stands.
    """

    def __init__(self) -> None:
        self.count = 0
        self.abrupt = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.abrupt and self.count > 1:
            raise KeyboardInterrupt


@dataclass
class _Conversation:
    """Where the exchange with the coordinator stands."""

    sent: m.SupervisorTick | None = None
    sent_s: float = 0.0
    up: bool = False
    answered: bool = False
    started_s: float = 0.0
    restart_at_s: float = 0.0
    failures: list[Failure] = field(default_factory=list)


class Supervisor:
    """Runs a fleet on a host until its outcome.

    Args:
        config: time-outs and the restart policy.
        host: the mechanism.
        clock: the time.
        on_status: called about four times a second.
        interrupts: what the user asked for meanwhile.
    """

    def __init__(
        self, config: MemberConfig, host: Host, clock: Clock, on_status: OnStatus, interrupts: Interrupts
    ) -> None:
        self._config = config
        self._host = host
        self._clock = clock
        self._on_status = on_status
        self._interrupts = interrupts
        self._talk = _Conversation()
        self._unreported: list[m.Exit] = []
        self._next_status_s = 0.0
        self._tick_s = BUSY_TICK_S
        self._messages: tuple[str, ...] = ()

    def run(self) -> Outcome:
        """Start, watch, obey; returns when the run is over and no process is left.

        Raises:
            FleetError: a process could not be started.
        """
        try:
            self._host.start_coordinator(first=True)
            self._talk.up, self._talk.started_s = True, self._clock.now()
            outcome = None
            while outcome is None:
                outcome = self._turn()
            self._farewell()
            return outcome
        finally:
            self._host.close()

    def _turn(self) -> Outcome | None:
        if self._interrupts.count > 1:
            return Outcome(
                "interrupted",
                "interrupted twice: everything was killed at once",
                "resume the run: it goes on from its last checkpoint",
            )
        self._unreported += self._host.reap()
        if (outcome := self._keep_coordinator(self._clock.now())) is not None:
            return outcome
        orders = self._ask() if self._talk.up else None
        if orders is None:
            if not self._talk.up:
                self._host.pause(BUSY_TICK_S)
            return None
        self._obey(orders)
        if orders.outcome:
            return Outcome(orders.outcome, orders.error, orders.todo)
        self._host.pause(self._tick_s)
        return None

    # --- the coordinator -------------------------------------------------------------------

    def _keep_coordinator(self, now: float) -> Outcome | None:
        talk = self._talk
        if not talk.up:
            if now >= talk.restart_at_s:
                # Without an answer there was no order to start anybody: still nobody can be alive.
                self._host.start_coordinator(first=not talk.answered)
                talk.up, talk.started_s = True, now
            return None
        if talk.sent is not None and now - talk.sent_s > self._config.hang_timeout_s:
            self._host.kill_coordinator()
        end = self._host.coordinator_end()
        if end is None:
            return None
        talk.up, talk.sent = False, None
        if end.fatal:
            return Outcome("failed", end.what, end.todo)
        if now - talk.started_s > HEALTHY_S:
            talk.failures.clear()
        talk.failures.append(Failure(now, end.what, signature(end.what)))
        restart = decide(now, tuple(talk.failures), self._config)
        if restart.at_s is None:
            return Outcome("failed", f"the coordinator {restart.reason}\n{end.what}", end.todo)
        talk.restart_at_s = restart.at_s
        self._messages += (f"the coordinator ended ({headline(end.what)}): {restart.reason}",)
        return None

    def _ask(self) -> m.SupervisorOrders | None:
        talk = self._talk
        try:
            if talk.sent is None:
                tick = m.SupervisorTick(
                    self._host.alive(), tuple(self._unreported), self._interrupts.count > 0,
                    self._host.unplaced(), self._host.notices(),
                )  # fmt: skip
                self._host.send(tick)
                talk.sent, talk.sent_s = tick, self._clock.now()
            orders = self._host.receive(BUSY_TICK_S)
        except TransportError:
            # Sent again in the next turn; if the coordinator has died, its end is seen there.
            talk.sent = None
            self._host.pause(BUSY_TICK_S)
            return None
        if orders is not None:
            self._unreported = [e for e in self._unreported if e not in talk.sent.exits]
            talk.sent, talk.answered = None, True
        return orders

    # --- workers ---------------------------------------------------------------------------

    def _obey(self, orders: m.SupervisorOrders) -> None:
        for name, incarnation in orders.kill:
            self._host.kill(name, incarnation)
        running = self._host.alive()
        for name, incarnation in orders.spawn:
            older = [(n, i) for n, i in running if n == name]
            for one in older:
                self._host.kill(*one)
            if not older:  # the successor starts once its predecessor is seen to have ended
                self._host.spawn(name, incarnation)
        states = {entry["state"] for entry in orders.status.workers.values()}
        calm = bool(states) and states <= {"active", "given_up"}
        self._tick_s = CALM_TICK_S if calm else BUSY_TICK_S
        self._messages += orders.status.messages
        if self._clock.now() >= self._next_status_s or orders.outcome:
            self._next_status_s = self._clock.now() + STATUS_S
            told, self._messages = self._messages, ()
            self._on_status(msgspec.structs.replace(orders.status, messages=told))

    def _farewell(self) -> None:
        """Workers leave by themselves, because the coordinator tells them so; bounded."""
        until_s = self._clock.now() + FAREWELL_S
        while (
            self._talk.up
            and self._host.alive()
            and self._clock.now() < until_s
            and self._interrupts.count < 2
        ):
            self._host.pause(BUSY_TICK_S)
            self._host.reap()
