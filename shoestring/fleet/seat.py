"""A worker's seat in the fleet: its side of the conversation with the coordinator (source: ours).

The main thread joins, asks for orders and reports; a second thread with a channel of its own
sends heartbeats, so that a long step is not taken for a hang and a stopped process is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError, ShoestringError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.lookout import Lookout

if TYPE_CHECKING:
    from shoestring.fleet.channel import Channel

T = TypeVar("T")
CALL_RETRY_S = 0.05


class DismissedError(ShoestringError):
    """Another process has taken this worker's place; leave at once and touch nothing."""

    exit_code = 0


class RoundOver(Exception):
    """The round that this worker was in is over; join again."""


class BaseSeat:
    """What every worker's side of the conversation has: a channel, heartbeats, patience.

    Args:
        name, incarnation: who this process is.
        open_channel: makes a channel to the coordinator.
        clock: for pauses, and for how long the coordinator has been silent.
        config: how often to give a sign of life, and how long to bear with a silent coordinator.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        open_channel: Callable[[], Channel],
        clock: Clock,
        config: MemberConfig,
    ) -> None:
        self.name = name
        self.incarnation = incarnation
        self._channel = open_channel()
        self._clock = clock
        self._pulse = Pulse(name, incarnation, open_channel, clock, config.heartbeat_s)
        self._patience_s = config.hang_timeout_s + config.start_timeout_s

    def __enter__(self) -> Self:
        self._pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pulse.stop()
        self._channel.close()

    def crashed(self, error: str) -> None:
        """Say why this process is about to exit; best effort, its exit is seen anyway."""
        try:
            self._channel.call(m.Crashed(self.name, self.incarnation, error))
        except TransportError:
            return  # the supervisor reports the exit and the log tail

    def _ask(self, request: m.Request) -> m.Reply:
        """One round trip.

        Raises:
            TransportError: no answer; DismissedError: this process was replaced; FleetError: the coordinator
                refuses.
        """
        reply = self._channel.call(request)
        if isinstance(reply, m.Dismissed):
            raise DismissedError(reply.reason, "nothing: this is how a replaced worker leaves")
        if isinstance(reply, m.Refused):
            raise FleetError(reply.what, reply.todo)
        return reply

    def _bear(self, silent_s: float, error: TransportError) -> None:
        """Bear with a coordinator that has not answered for so long.

        Raises:
            FleetError: one that hangs would have been found, and another one have started.
        """
        if silent_s > self._patience_s:
            raise FleetError(
                f"{self.name} cannot reach the coordinator: {error.what}",
                "look at the run's log, then resume it",
            ) from error


class Seat(BaseSeat):
    """What a worker's loop talks to; see `BaseSeat`.

    Attributes:
        lookout: tells the main thread when the others go on without it.
        notice: why this machine will be taken away soon, once that is known: with its next step the worker
            says so, hands over and leaves.

    Raises (every call):
        DismissedError: this process was replaced.
        FleetError: the coordinator could not be reached for as long as one that hangs is suffered, and
            another one needs to start.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        open_channel: Callable[[], Channel],
        clock: Clock,
        config: MemberConfig,
    ) -> None:
        super().__init__(name, incarnation, open_channel, clock, config)
        self._last_round = -1
        self.notice = ""
        self.lookout = Lookout(name, incarnation, open_channel)

    def __exit__(self, *error: object) -> None:
        self.lookout.stop()
        super().__exit__(*error)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names what the main thread does, for heartbeats; `exchange` is waiting for others."""
        self._pulse.enter(name, self._clock.now())
        try:
            yield
        finally:
            self._pulse.enter("idle", self._clock.now())

    def join(
        self, step: int, problem: str = "", held: m.Held | None = None, micro_batch: int = 0
    ) -> m.Round | m.Stop:
        """Wait for a round; `step` is that of the state held (-1: none), `held` which shards of it (None:
        all), `micro_batch` what this worker takes in one pass."""
        self._pulse.step = step
        reply = self._poll(
            m.Join(self.name, self.incarnation, step, self._last_round, problem, held, micro_batch)
        )
        if isinstance(reply, m.Round):
            self._last_round = reply.round_id
            return reply
        return _expect(reply, m.Stop)

    def next(self, round_id: int, step: int, report: m.StepReport | None) -> m.Order | m.Save | m.Stop:
        """The next order for one who has applied `step` steps.

        Raises:
            RoundOver: the membership changes; join again.
        """
        self._pulse.step = step
        reply = self._poll(m.Next(self.name, self.incarnation, round_id, step, report, self.notice))
        return reply if isinstance(reply, (m.Order, m.Save)) else _expect(reply, m.Stop)

    def next_for_server(self, round_id: int, step: int, report: m.StepReport | None) -> m.Updates | m.Stop:
        """What comes next for a server that has applied all updates up to `step`.

        Raises:
            RoundOver: as above.
        """
        self._pulse.step = step
        reply = self._poll(m.Next(self.name, self.incarnation, round_id, step, report, self.notice))
        return reply if isinstance(reply, m.Updates) else _expect(reply, m.Stop)

    def out_of_memory(self, round_id: int, step: int, samples: int, error: str) -> None:
        """Report that a pass over so many samples does not fit; on return the next ones are smaller.

        Raises:
            RoundOver: as above.
        """
        request = m.OutOfMemory(self.name, self.incarnation, round_id, step, samples, error)
        _expect(self._poll(request), m.Ack)

    def ready(self, round_id: int, step: int, report: m.StepReport) -> None:
        """This worker's part of the step is computed; `report` is of its own work.

        Raises:
            RoundOver: as above.
        """
        _expect(self._poll(m.Ready(self.name, self.incarnation, round_id, step, report)), m.Ack)

    def give_back(self, round_id: int, step: int, ranges: tuple[tuple[int, int], ...]) -> None:
        """These positions of the step were not used, and will not be; on return the ledger knows.

        Raises:
            RoundOver: as above.
        """
        _expect(self._poll(m.GiveBack(self.name, self.incarnation, round_id, step, ranges)), m.Ack)

    def failed(self, round_id: int, step: int, failures: tuple[tuple[int, str], ...]) -> None:
        """Report samples that cannot be used; on return the ledger knows.

        Raises:
            RoundOver: as above.
        """
        _expect(self._poll(m.Failed(self.name, self.incarnation, round_id, step, failures)), m.Ack)

    def saved(self, round_id: int, step: int, files: dict[str, tuple[int, str]], error: str = "") -> bool:
        """Report this worker's part of a checkpoint; whether it was committed in the end.

        Raises:
            RoundOver: as above.
        """
        reply = self._poll(m.Saved(self.name, self.incarnation, round_id, step, files, error))
        return _expect(reply, m.Committed).ok

    def offer_saved(
        self, round_id: int, step: int, files: dict[str, tuple[int, str]], error: str = ""
    ) -> bool:
        """Report this one's part of a checkpoint, without waiting for the others'; whether it is settled.

        Raises:
            RoundOver: as above.
        """
        request = m.Saved(self.name, self.incarnation, round_id, step, files, error)
        try:
            reply = self._ask(request)
        except TransportError:
            return False  # it is offered again
        if isinstance(reply, m.Wait):
            return False
        _expect(_checked(reply), m.Committed)
        return True

    def recovered(
        self,
        round_id: int,
        took_s: float,
        own_bytes: int,
        peer_bytes: int,
        rounded_bytes: int,
        disk_bytes: int,
    ) -> None:
        """Say where this worker's shards came from, for the record."""
        told = m.Recovered(
            self.name, self.incarnation, round_id, took_s, own_bytes, peer_bytes, rounded_bytes, disk_bytes
        )
        _expect(self._poll(told), m.Ack)

    def bad_checkpoint(self, round_id: int, path: str, error: str) -> None:
        """Report a checkpoint that cannot be restored."""
        _expect(self._poll(m.BadCheckpoint(self.name, self.incarnation, round_id, path, error)), m.Ack)

    def kv(self, round_id: int) -> KeyValues:
        """The rendezvous table of a round."""
        return KeyValues(round_id, f"{self.name}.{self.incarnation}", self._poll)

    def _poll(self, request: m.Request) -> m.Reply:
        """Ask until there is an answer; a lost message or a restarting coordinator is asked again."""
        silent_since_s = self._clock.now()
        while True:
            try:
                reply = self._ask(request)
            except TransportError as error:
                self._bear(self._clock.now() - silent_since_s, error)
                self._clock.sleep(CALL_RETRY_S)
                continue
            silent_since_s = self._clock.now()
            if isinstance(reply, m.Wait):
                self._clock.sleep(reply.retry_s)
                continue
            return _checked(reply)


class KeyValues:
    """Set, get and add within one round; `get` waits until the value is there.

    Raises (every call):
        RoundOver: the round is over.
    """

    def __init__(self, round_id: int, who: str, poll: Callable[[m.Request], m.Reply]) -> None:
        self._round_id = round_id
        self._who = who
        self._poll = poll
        self._adds = 0

    def set(self, key: str, value: bytes) -> None:
        """Publish a value."""
        _expect(self._poll(m.KvSet(self._round_id, key, value)), m.Ack)

    def get(self, key: str) -> bytes:
        """Read a value, waiting for it."""
        return _expect(self._poll(m.KvGet(self._round_id, key)), m.Value).value

    def add(self, key: str, amount: int) -> int:
        """Add to a counter; returns its new value."""
        self._adds += 1
        once = f"{self._who}.{self._adds}"
        return int(_expect(self._poll(m.KvAdd(self._round_id, key, amount, once)), m.Value).value)


class Pulse:
    """The heartbeat thread. It shares three plain attributes with the main thread, each replaced whole."""

    def __init__(
        self, name: str, incarnation: int, open_channel: Callable[[], Channel], clock: Clock, period_s: float
    ) -> None:
        self.step = -1
        self._who = (name, incarnation)
        self._open_channel = open_channel
        self._clock = clock
        self._period_s = period_s
        self._now_doing = ("idle", clock.now())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._period_s + 1.0)

    def enter(self, phase: str, now_s: float) -> None:
        """What the main thread does from now on."""
        self._now_doing = (phase, now_s)

    def _run(self) -> None:
        channel = self._open_channel()
        while not self._over.wait(self._period_s):
            phase, since_s = self._now_doing
            beat = m.Heartbeat(*self._who, self.step, phase, self._clock.now() - since_s)
            try:
                channel.call(beat)
            except TransportError:
                continue  # the coordinator is away or coming back; the next beat tells it
        channel.close()


def _checked(reply: m.Reply) -> m.Reply:
    if isinstance(reply, m.Regroup):
        raise RoundOver(reply.reason)
    return reply


def _expect(reply: m.Reply, kind: type[T]) -> T:
    if isinstance(reply, m.Stop) and not isinstance(reply, kind):
        raise RoundOver(f"the run is over: {reply.reason}")  # the next join is told so too
    return expected(reply, kind)


def expected(reply: m.Reply, kind: type[T]) -> T:
    """The reply, which is of this kind.

    Raises:
        FleetError: it is another one.
    """
    if not isinstance(reply, kind):
        raise FleetError(
            f"the coordinator answered {type(reply).__name__}, not {kind.__name__}",
            "run the same version of shoestring on every host",
        )
    return reply
