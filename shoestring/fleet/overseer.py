"""What every coordinator does beside its own work: it hears of workers, has them started and killed, notes
what happened, and ends (source: ours)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from shoestring.base.errors import ShoestringError
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.membership import Membership
from shoestring.fleet.persisted import Log
from shoestring.fleet.restarts import headline

Handler = Callable[[float, Any], m.Reply]
PLACE_S = 10.0
"""After that long without a place a worker's wait is told, once."""


class Overseer(ABC):
    """The common part of coordinators.

    Args:
        members: who is in the fleet.
        config: time-outs.
        log: the run record.
        now: the time at which this coordinator takes over.
    """

    _INTERRUPTED = "interrupted by the user"

    def __init__(self, members: Membership, config: MemberConfig, log: Log, now: float) -> None:
        self._members = members
        self._log = log
        self._stop_reason = ""
        self._outcome = self._error = self._todo = ""
        self._messages: list[str] = []
        self._needs_cpus = config.cpus
        self._placeless: dict[tuple[str, int], float] = {}
        self._stall_s = config.heartbeat_timeout_s / 2
        self._last_now = self._last_tick_s = now
        self._handlers: Mapping[type[m.Message], Handler] = self._handler_table()

    # --- the outside -----------------------------------------------------------------------

    def handle(self, now: float, request: m.Request) -> m.Reply:
        """Answer one request; never raises for what a client sent, errors end the run."""
        self._pass_time(now)
        if type(request) not in self._handlers:
            return m.Refused(f"{type(request).__name__} means nothing to this run", "report this as a bug")
        try:
            return self._handlers[type(request)](now, request)
        except ShoestringError as error:
            self._fail(error.what, error.todo)
            return m.Stop(error.what)

    @abstractmethod
    def tick(self, now: float) -> None:
        """What happens by itself."""

    @property
    def outcome(self) -> str:
        """`finished`, `interrupted` or `failed` once the run is over, else empty."""
        return self._outcome

    # --- what a coordinator of some kind adds ------------------------------------------------

    @abstractmethod
    def _handler_table(self) -> dict[type[m.Message], Handler]:
        """What it answers; `_overseen` is part of it."""

    @abstractmethod
    def _step(self) -> int:
        """How far it is, for the record."""

    @abstractmethod
    def _pass_time(self, now: float) -> None:
        """Called first with every request and tick."""

    @abstractmethod
    def _nothing_comes(self) -> bool:
        """Whether a run that is to stop has stopped."""

    @abstractmethod
    def _status(self, now: float) -> m.Status:
        """What a person wants to see."""

    def _heed(self, now: float, request: m.SupervisorTick) -> None:
        """What the host knows: who waits for a place."""
        self._members.unplaced(now, request.unplaced)
        since = {process: self._placeless.get(process, now) for process in request.unplaced}
        late = [process for process, at in since.items() if now - at >= PLACE_S]
        if late and not self._stop_reason and not self._outcome:
            self._note("decision", self._waits(late), action="wait", workers=[name for name, _ in late])
            since |= dict.fromkeys(late, math.inf)  # told
        self._placeless = since

    def _waits(self, late: list[tuple[str, int]]) -> str:
        who = ", ".join(name for name, _ in late)
        few = "has" if len(late) == 1 else "have"
        room = f"{self._needs_cpus:g} cores free (fleet.members.cpus), or the GPU that it needs"
        return f"{who} {few} not come up on any host for {PLACE_S:g} s: as soon as one has {room}, it starts"

    # --- workers and the supervisor ------------------------------------------------------------

    def _overseen(self) -> dict[type[m.Message], Handler]:
        return {
            m.Heartbeat: self._heartbeat,
            m.Crashed: self._crashed,
            m.SupervisorTick: self._supervise,
        }

    def _heartbeat(self, now: float, request: m.Heartbeat) -> m.Reply:
        if not self._members.current(request.worker, request.incarnation):
            return dismissed()
        self._members.heard(now, request.worker, request.phase, request.phase_s)
        return m.Ack()

    def _crashed(self, now: float, request: m.Crashed) -> m.Reply:
        if self._members.current(request.worker, request.incarnation):
            self._lost(now, request.worker, request.error)
        return m.Ack()

    def _supervise(self, now: float, request: m.SupervisorTick) -> m.Reply:
        for ended in request.exits:
            if self._members.current(ended.worker, ended.incarnation) and not self._outcome:
                self._ended(now, ended)
        self._heed(now, request)
        if request.interrupt and not self._stop_reason:
            self._stop_reason = "interrupted"
            self._note("decision", self._INTERRUPTED)
        if not self._stop_reason and not self._outcome:
            self._members.start_due(now)
        self.tick(now)
        if self._stop_reason and self._nothing_comes():
            self._outcome = self._outcome or self._stop_reason
        alive = set(request.alive)
        spawn = () if self._outcome else tuple(p for p in self._members.starting() if p not in alive)
        return m.SupervisorOrders(
            spawn, self._members.doomed(), self._status(now), self._outcome, self._error, self._todo
        )

    def _ended(self, now: float, ended: m.Exit) -> None:
        """The process of a living worker is seen to have ended."""
        reason = self._members[ended.worker].doomed or ended.error or f"exit code {ended.code}"
        self._lost(now, ended.worker, reason)

    def _lost(self, now: float, name: str, error: str, borne: int = 0) -> None:
        what = self._members.lost(now, name, error, self._step(), borne)
        self._note("fault", f"{name} is gone ({headline(error)}): {what}", worker=name, detail=error)

    def _doom(self, now: float, name: str, reason: str) -> None:
        self._members.doom(name, reason)
        self._note("decision", f"kill {name}: {reason}", action="kill", worker=name)

    def _find_hung(self, now: float) -> None:
        for name, reason in self._members.find_hung(now).items():
            self._doom(now, name, f"hung: {reason}")

    # --- the end, and time ---------------------------------------------------------------------

    def _lose_hope(self) -> None:
        """Fail, once every worker was given up."""
        if (error := self._members.hopeless()) and not self._outcome:
            self._fail(
                f"every worker was given up; the last error:\n{error}", "mend the cause, then resume the run"
            )

    def _fail(self, what: str, todo: str) -> None:
        if self._outcome != "failed":
            self._outcome, self._error, self._todo = "failed", what, todo
            self._note("fault", what, fatal=True)

    def fault(self, text: str) -> None:
        """Something that this coordinator stands on has failed: for the record, and for whoever looks on."""
        self._note("fault", text)

    def _note(self, kind: str, text: str, **fields: Any) -> None:
        self._messages.append(text)
        self._log.append(kind, step=self._step(), reason=text, **fields)

    def _told(self) -> tuple[str, ...]:
        """Messages for a person, once."""
        told, self._messages = tuple(self._messages), []
        return told

    def _excuse(self, now: float) -> float:
        """While this process itself stood still, nobody could be heard: that is not their silence.

        Returns:
            For how many seconds it did; 0: it did not.
        """
        stalled_s = now - self._last_tick_s
        self._last_tick_s = now
        if stalled_s <= self._stall_s:
            return 0.0
        self._members.excuse(stalled_s)
        return stalled_s


def dismissed() -> m.Dismissed:
    """The answer to a process that is not its worker's living one."""
    return m.Dismissed("another process has taken this worker's place")
