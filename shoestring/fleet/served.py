"""The coordinator of a fleet whose servers hold the parameters: a round is of servers, workers are its guests
(source: ours)."""

from __future__ import annotations

from shoestring.fleet import messages as m
from shoestring.fleet.coordinator import RETRY_S, Coordinator
from shoestring.fleet.membership import Membership
from shoestring.fleet.names import is_server, server_names, worker_names
from shoestring.fleet.overseer import dismissed
from shoestring.fleet.rounds import RoundState
from shoestring.fleet.serving import Serving
from shoestring.fleet.stepping import Stepper


class ServedCoordinator(Coordinator):
    """See Coordinator. The loss of a server ends the round: model and ledger go back together. The loss of a
    worker ends nothing: its samples go to others."""

    def flush(self) -> None:
        """See Coordinator."""
        self._kept.server_control = self._serving.servers.snapshot()
        super().flush()

    @property
    def _serving(self) -> Serving:
        assert isinstance(self._stepper, Serving)
        return self._stepper

    def _membership(self) -> Membership:
        workers = worker_names(self._config.members.workers)
        return Membership(self._config.members, workers, server_names(self._config.servers.count))

    def _new_stepper(self, now: float) -> Stepper:
        made = Serving(self._config, self._ledger, self._keeper, self._log, self._steering, now)
        made.servers.restore(self._kept.server_control)
        return made

    def _nothing_comes(self) -> bool:
        missing = self._members.named("absent", "given_up", "removed")
        without_server = self._round is None and any(is_server(name) for name in missing)
        return without_server or super()._nothing_comes()

    def _join(self, now: float, request: m.Join) -> m.Reply:
        if is_server(request.worker):
            return super()._join(now, request)
        if not self._members.current(request.worker, request.incarnation):
            return dismissed()
        if self._members.is_echo(request.worker, request.last_round):
            return m.Wait(RETRY_S)  # nobody waits for this answer any more
        round_ = self._round
        came_back = round_ is not None and request.worker in round_.guests
        if round_ is not None and came_back:
            problem = self._serving.left(now, round_, request.worker, request.problem, self._kept)
            if problem:
                self._note("fault", problem, worker=request.worker)
        if (refusal := self._enlist(now, request)) is not None:
            return refusal
        if round_ is None or self._serving.is_early(now, request.worker):
            return m.Wait(RETRY_S)
        self._members.admit(request.worker)
        return self._serving.welcome(now, round_, request.worker)

    def _next(self, now: float, round_: RoundState, request: m.Next) -> m.Reply:
        server = request.worker in round_.members
        self._members.heard(now, request.worker, "next", 0.0)
        if server or request.step >= 0:  # a worker that has brought nothing yet has not shown its health
            self._members.advanced(request.worker, request.step if server else self._kept.confirmed)
        self._serving.notice(round_, request.worker, request.notice)
        ask = self._serving.served if server else self._serving.visited
        reply = ask(now, round_, request, self._stop_reason, self._kept)
        if isinstance(reply, m.Stop):
            self._end()
        if isinstance(reply, m.Regroup) and server:
            self._break_round(now, reply.reason)
        return reply

    def _saved(self, now: float, round_: RoundState, request: m.Saved) -> m.Reply:
        self._members.heard(now, request.worker, "saved", 0.0)
        return self._serving.saved(now, round_, request, self._kept)

    def _out_of_memory(self, now: float, round_: RoundState, request: m.OutOfMemory) -> m.Reply:
        self._messages.append(self._steering.out_of_memory(request))
        return m.Ack()

    def _lost(self, now: float, name: str, error: str, borne: int = 0) -> None:
        super()._lost(now, name, error, borne)
        if self._round is not None:
            self._serving.goodbye(now, self._round, name, self._kept)
        if is_server(name):
            self._serving.servers.lost(name)
