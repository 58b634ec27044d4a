"""One worker and the coordinator in one process: no socket, no fork, the same behaviour (source: ours).

A crash of the worker's function is the crash of a worker: it is restarted by the same policy. A
kill order reaches it at its next call. Only a hang cannot be ended from within.
"""

from __future__ import annotations

import threading
import traceback

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError, ShoestringError, TransportError
from shoestring.base.record import RunRecord
from shoestring.fleet import messages as m
from shoestring.fleet.channel import Answerer, Channel, DirectChannel, WorkerContext
from shoestring.fleet.launch import Launch, Outcome, build_coordinator, load_entry
from shoestring.fleet.supervisor import BUSY_TICK_S, STATUS_S, Interrupts, OnStatus


class Killed(BaseException):
    """The coordinator wants this worker dead; not an Exception, so that no worker handles it."""


def run_inprocess(launch: Launch, clock: Clock, on_status: OnStatus, interrupts: Interrupts) -> Outcome:
    """Run a fleet of one worker in this process until its outcome; the caller holds the run lock.

    Raises:
        FleetError: more than one worker is asked for.
    """
    if launch.fleet.members.workers != 1:
        raise FleetError(
            f"{launch.fleet.members.workers} workers do not fit into one process", "use the local transport"
        )
    interrupts.abrupt = True
    record: RunRecord | None = None
    try:
        coordinator, record = build_coordinator(launch, clock, resumed=True)
        return InProcess(launch, coordinator, clock, on_status, interrupts).run()
    except KeyboardInterrupt:
        return Outcome(
            "interrupted",
            "interrupted twice: the worker was left at once",
            "resume the run: it goes on from its last checkpoint",
        )
    except ShoestringError as error:
        return Outcome("failed", error.what, error.todo)
    finally:
        interrupts.abrupt = False
        if record is not None:
            record.close()


class InProcess:
    """The supervisor of one worker that runs in its own thread of control.

    Args:
        launch: the run.
        coordinator: answers both of us.
        clock: the time.
        on_status: called about four times a second while the worker makes calls.
        interrupts: what the user asked for meanwhile.
    """

    def __init__(
        self, launch: Launch, coordinator: Answerer, clock: Clock, on_status: OnStatus, interrupts: Interrupts
    ) -> None:
        self._launch = launch
        self._clock = clock
        self._on_status = on_status
        self._interrupts = interrupts
        self._entry = load_entry(launch.entry)
        self._coordinator = coordinator
        self._lock = threading.RLock()
        self._line = DirectChannel(coordinator, clock, self._lock)
        self._thread = threading.get_ident()
        self._running: tuple[tuple[str, int], ...] = ()
        self._exits: tuple[m.Exit, ...] = ()
        self._next_status_s = clock.now()
        self._messages: tuple[str, ...] = ()

    def run(self) -> Outcome:
        """Supervise and work in turns until the run is over.

        Raises:
            LedgerError: the store cannot be written.
        """
        while True:
            orders = self._supervise()
            if orders.outcome:
                return Outcome(orders.outcome, orders.error, orders.todo)
            for name, incarnation in orders.spawn:
                self._exits += (self._work(name, incarnation),)
            if not orders.spawn:
                self._clock.sleep(BUSY_TICK_S)

    def _work(self, name: str, incarnation: int) -> m.Exit:
        launch = self._launch
        self._running = ((name, incarnation),)
        context = WorkerContext(
            name=name,
            incarnation=incarnation,
            open_channel=self._open,
            clock=self._clock,
            config=launch.fleet.members,
            run_dir=launch.run_dir,
            payload=launch.payload,
            device=launch.device,
            threads=launch.threads,
        )
        try:
            self._entry(context)
        except Killed as order:
            return m.Exit(name, incarnation, -9, str(order))
        except Exception:  # noqa: BLE001  whatever ends a worker is reported, and decided on, as its exit
            return m.Exit(name, incarnation, 1, traceback.format_exc())
        finally:
            self._running = ()
        return m.Exit(name, incarnation, 0)

    def _supervise(self) -> m.SupervisorOrders:
        tick = m.SupervisorTick(self._running, self._exits, self._interrupts.count > 0)
        orders = self._line.call(tick)
        if not isinstance(orders, m.SupervisorOrders):
            raise FleetError(
                f"the coordinator answered {type(orders).__name__}",
                "report this; it is a mistake in shoestring",
            )
        self._exits = ()
        self._messages += orders.status.messages
        if self._clock.now() >= self._next_status_s or orders.outcome:
            self._next_status_s = self._clock.now() + STATUS_S
            told, self._messages = self._messages, ()
            self._on_status(msgspec.structs.replace(orders.status, messages=told))
        return orders

    def _open(self) -> Channel:
        ours = threading.get_ident() == self._thread
        return _Watched(self) if ours else _Aside(DirectChannel(self._coordinator, self._clock, self._lock))

    def call(self, request: m.Request) -> m.Reply:
        """A worker's call; when a status is due, supervision happens on the way.

        Raises:
            Killed: the coordinator ordered this worker's end.
        """
        reply = self._line.call(request)
        if self._clock.now() >= self._next_status_s and self._running:
            orders = self._supervise()
            if set(orders.kill) & set(self._running):
                raise Killed("killed by order of the coordinator")
        return reply


class _Aside:
    """The channel of the worker's other threads: the heartbeat's."""

    def __init__(self, line: DirectChannel) -> None:
        self._line = line

    def call(self, request: m.Request) -> m.Reply:
        """Answered at once. Raises TransportError: the main thread's own call meets the cause."""
        try:
            return self._line.call(request)
        except ShoestringError as error:
            raise TransportError(error.what, error.todo) from error

    def close(self) -> None:
        """Nothing to let go of."""


class _Watched:
    """The channel of the worker's main thread."""

    def __init__(self, host: InProcess) -> None:
        self._host = host

    def call(self, request: m.Request) -> m.Reply:
        """Answered at once."""
        return self._host.call(request)

    def close(self) -> None:
        """Nothing to let go of."""
