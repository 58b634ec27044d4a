"""The coordinator: ledger, membership, monitor and controller behind one deterministic class.

`handle(now, request) -> reply` and `tick(now)` are all there is: transports carry the messages,
the simulator drives the same class. What `handle` changed is durable once `flush` returns, and
a transport sends replies only after that. Source: AntDT's dynamic data sharding for the states
of samples; rounds, settling and the rest are ours (docs/design/fleet.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from shoestring.base.errors import ShoestringError
from shoestring.data.store import DurableLedger
from shoestring.fleet import drill, latecomers, patience, showing
from shoestring.fleet import messages as m
from shoestring.fleet.checkpoints import Found, Keeper
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.leases import LeaseDesk
from shoestring.fleet.membership import Membership
from shoestring.fleet.names import worker_names
from shoestring.fleet.overseer import Handler, Overseer, dismissed
from shoestring.fleet.persisted import Log, Persisted
from shoestring.fleet.rollback import roll_back
from shoestring.fleet.rounds import RoundState
from shoestring.fleet.steering import Steering
from shoestring.fleet.stepping import Stepper

RETRY_S = 0.01


class Coordinator(Overseer):
    """Answers workers and the supervisor.

    Args:
        config: the fleet's settings.
        ledger: the durable ledger; `commit` makes a batch of operations durable.
        keeper: commits and finds checkpoints.
        log: the run record.
        now: the time at which this coordinator takes over.
        resumed: whether no worker of an earlier coordinator can be alive (a resumed run).

    Raises:
        LedgerError: from `flush`, when the store cannot be written.
    """

    _INTERRUPTED = "interrupted by the user: save at the next step boundary, then stop"

    def __init__(
        self,
        config: FleetConfig,
        ledger: DurableLedger,
        keeper: Keeper,
        log: Log,
        now: float,
        resumed: bool = False,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._keeper = keeper
        self._desk = LeaseDesk(ledger)
        super().__init__(self._membership(), config.members, log, now)
        self._steering = Steering(config.control, log, self._members.add, lambda: self._members.room)
        self._round: RoundState | None = None
        self._broken: RoundState | None = None
        self._broken_at_s: float | None = now
        self._break_reason = "start"
        self._fruitless, self._form_at_s = 0, now
        self._kept = Persisted()
        self._flushed = b""
        self._take_over(now, resumed)
        self._stepper: Stepper = self._new_stepper(now)

    def _membership(self) -> Membership:
        return Membership(self._config.members, worker_names(self._config.members.workers))

    def _new_stepper(self, now: float) -> Stepper:
        return Stepper(self._config, self._ledger, self._keeper, self._log, self._steering, now)

    # --- the outside -----------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """What happens by itself: hung workers, expired leases, rounds that can form."""
        self._pass_time(now)
        try:
            if (stalled_s := self._excuse(now)) and self._broken_at_s is not None:
                self._broken_at_s += stalled_s
            self._find_hung(now)
            if self._round is None and self._broken_at_s is not None and not self._outcome:
                for name, reason in self._members.find_stuck(now, self._broken_at_s).items():
                    self._doom(now, name, f"stuck: {reason}")
            self._ledger.expire(now)
            self._form_round(now)
            if self._round is not None:
                self._drill()
            self._lose_hope()
        except ShoestringError as problem:
            self._fail(problem.what, problem.todo)

    def flush(self) -> None:
        """Make all that was handled so far durable, in one transaction; nothing to do costs nothing.

        Raises:
            LedgerError: the store cannot be written; this coordinator must not answer any more.
        """
        self._kept.members, self._kept.control = self._members.snapshot(), self._steering.snapshot()
        # Whole seconds are enough for the budget, and keep idle calls free of disk writes.
        kept = msgspec.msgpack.encode(
            msgspec.structs.replace(self._kept, elapsed_s=float(int(self._kept.elapsed_s)))
        )
        if kept != self._flushed:
            self._ledger.put_meta("coordinator", kept)
            self._flushed = kept
        self._ledger.commit()

    @property
    def calm(self) -> bool:
        """Whether ticks may be rare: a round is at work, and its members' requests do the rest."""
        return self._round is not None and not self._round.closing and not self._outcome

    @property
    def standing(self) -> tuple[int, int]:
        """(number of the round in progress or -1, newest step that every member has applied)."""
        return (self._round.round_id if self._round is not None else -1), self._kept.confirmed

    # --- workers ---------------------------------------------------------------------------

    def _join(self, now: float, request: m.Join) -> m.Reply:
        if not self._members.current(request.worker, request.incarnation):
            return dismissed()
        if self._members.is_echo(request.worker, request.last_round):
            return m.Wait(RETRY_S)  # nobody waits for this answer any more
        round_ = self._round
        if (
            round_ is not None
            and request.worker in round_.members
            and self._members[request.worker].state == "active"
        ):
            if request.last_round < round_.round_id:
                return round_.message(request.worker)
            self._left(now, round_, request)
        if (refusal := self._enlist(now, request)) is not None:
            return refusal
        if self._round is not None:
            self._stepper.close(self._round, f"{request.worker} has arrived")
        self._form_round(now)
        if self._round is not None and request.worker in self._round.members:
            return self._round.message(request.worker)
        return m.Wait(RETRY_S)

    def _enlist(self, now: float, request: m.Join) -> m.Reply | None:
        """Who asks for a round waits for one from here on; an answer where it gets none."""
        if self._outcome:
            return m.Stop(self._outcome)
        if (leave := self._stepper.leave(now, request.worker)) is not None:
            self._members.retire(now, request.worker, leave.again)
            return m.Dismissed(leave.reason)
        self._steering.joined(request.worker, request.micro_batch)
        self._members.join(now, request.worker, request.step, request.last_round, request.held)
        return None

    def _next(self, now: float, round_: RoundState, request: m.Next) -> m.Reply:
        if round_.is_echo(request.worker, request.step):
            return m.Wait(RETRY_S)  # a late copy must not plan a step that is long over
        if request.step > round_.newest_step():
            self._doom(now, request.worker, f"claims step {request.step}, which its round has not planned")
            return m.Dismissed("this state belongs to a past that the fleet has left")
        self._members.heard(now, request.worker, "next", 0.0)
        self._members.advanced(request.worker, request.step)
        if request.report is not None and not round_.has_told(request.worker, request.step):
            self._steering.observe(now, request.worker, request.report)
        round_.note_applied(request.worker, request.step, request.report)
        self._confirm(now, round_)
        self._stepper.notice(round_, request.worker, request.notice)
        reply = self._stepper.boundary(
            now, round_, request.worker, request.step, self._stop_reason, self._kept
        )
        if isinstance(reply, m.Stop):
            self._end()
        if isinstance(reply, m.Regroup):
            self._break_round(now, reply.reason)
        return reply

    def _failed(self, now: float, round_: RoundState, request: m.Failed) -> m.Reply:
        self._stepper.fail_samples(now, request)
        return m.Ack()

    def _out_of_memory(self, now: float, round_: RoundState, request: m.OutOfMemory) -> m.Reply:
        reason = self._steering.out_of_memory(request)
        self._messages.append(reason)
        self._fruitless = 0  # it gets somewhere: the next try is smaller
        self._break_round(now, reason)
        return m.Ack()

    def _ready(self, now: float, round_: RoundState, request: m.Ready) -> m.Reply:
        if latecomers.note_ready(now, round_, request.worker, request.step):
            self._steering.observe(now, request.worker, request.report)
        return m.Ack()

    def _lagging(self, now: float, round_: RoundState, request: m.Lagging) -> m.Reply:
        return latecomers.verdict(now, round_, request.worker, request.step, self._steering.backups)

    def _give_back(self, now: float, round_: RoundState, request: m.GiveBack) -> m.Reply:
        self._stepper.give_back(round_, request)
        return m.Ack()

    def _saved(self, now: float, round_: RoundState, request: m.Saved) -> m.Reply:
        self._members.heard(now, request.worker, "saved", 0.0)
        round_.note_applied(request.worker, request.step, None)
        self._confirm(now, round_)
        return self._stepper.saved(now, round_, request, self._kept)

    def _recovered(self, now: float, round_: RoundState, request: m.Recovered) -> m.Reply:
        told = msgspec.structs.asdict(request)
        self._log.append("recovery", step=self._kept.confirmed, reason=request.in_words(), **told)
        return m.Ack()

    def _bad_checkpoint(self, now: float, round_: RoundState, request: m.BadCheckpoint) -> m.Reply:
        if round_.checkpoint != request.path:
            return m.Ack()  # a late copy
        self._keeper.distrust(request.path, request.error)
        self._note(
            "fault", f"checkpoint {request.path} cannot be restored: {request.error}", worker=request.worker
        )
        self._break_round(now, "its checkpoint cannot be restored")
        return m.Ack()

    def _kv(self, now: float, request: m.KvSet | m.KvGet | m.KvAdd) -> m.Reply:
        if (round_ := self._round) is None or round_.round_id != request.round_id:
            return m.Regroup("this round is over")
        if isinstance(request, m.KvSet):
            return round_.table.set(request)
        return round_.table.get(request) if isinstance(request, m.KvGet) else round_.table.add(request)

    # --- the supervisor ----------------------------------------------------------------------

    def _nothing_comes(self) -> bool:
        """Whether nobody is left who could save what was trained."""
        return not self._members.named("starting", "waiting", "active")

    def _status(self, now: float) -> m.Status:
        return showing.status(
            now, self._progress(), self._ledger.counts(), self._members, self._steering, self._stepper,
            self._kept, self._told(),
        )  # fmt: skip

    def _heed(self, now: float, request: m.SupervisorTick) -> None:
        """What the host knows: who waits for a place, whose machine will be taken away."""
        super()._heed(now, request)
        for worker, notice in request.notices:
            if self._round is not None and self._round.has(worker):
                self._stepper.notice(self._round, worker, notice)

    # --- rounds --------------------------------------------------------------------------------

    def _left(self, now: float, round_: RoundState, request: m.Join) -> None:
        """A member came back from its round. Rounds that get nowhere form ever later."""
        self._break_round(now, f"{request.worker} left the round: {request.problem or 'no reason given'}")
        self._fruitless += round_.confirmed() <= round_.step
        if pause_s := patience.pause_s(self._fruitless):
            self._form_at_s = now + pause_s
            self._note("decision", patience.reason(self._fruitless, pause_s, request.problem))

    def _form_round(self, now: float) -> None:
        if self._round is not None or self._outcome or now < self._form_at_s:
            return
        formed = self._stepper.try_form(now, self._members, self._kept)
        if formed is None:
            return
        step, checkpoint = formed.step, ""
        if formed.source_rank < 0:
            found = self._keeper.newest()
            self._tell(found, formed.reason)
            roll_back(found, self._ledger, self._kept)
            step, checkpoint = self._kept.confirmed, found.path if found.manifest is not None else ""
            self._stepper.restored(now, step)
        elif formed.without_moments:
            checkpoint = self._keeper.newest().path
        self._stepper.release_unsettled(now, step)
        self._kept.round_id += 1
        self._round = RoundState(
            self._kept.round_id, formed.members, step, formed.source_rank, checkpoint, now, formed.held
        )
        if self._broken is not None:
            self._round.inherit(self._broken, self._kept.confirmed)
        since = now - self._broken_at_s if self._broken_at_s is not None else 0.0
        self._stepper.formed(now, formed, self._kept, since)
        self._log.append(
            "round",
            round_id=self._kept.round_id,
            members=list(formed.members),
            step=step,
            reform_s=round(since, 4),
            state_from=formed.state_from(checkpoint),
            reason=self._break_reason,
        )
        self._broken_at_s = None

    def _tell(self, found: Found, why: str) -> None:
        for path, reason in found.damaged:
            self._note("fault", f"checkpoint {path} is damaged and was passed over: {reason}")
        if found.manifest is not None:
            told = f"{why or 'no worker holds state'}: {found.path}"
            self._log.append("decision", action="restore", step=found.manifest.step, reason=told)

    def _break_round(self, now: float, reason: str) -> None:
        if self._round is None:
            return
        self._stepper.drop_saving(self._round, self._kept)
        self._fruitless = 0 if self._round.confirmed() > self._round.step else self._fruitless
        self._broken, self._round = self._round, None
        self._broken_at_s, self._break_reason = now, reason

    def _round_of(self, worker: str, incarnation: int, round_id: int) -> tuple[RoundState | None, m.Reply]:
        if not self._members.current(worker, incarnation):
            return None, dismissed()
        if self._outcome:
            return None, m.Stop(self._outcome)
        if self._round is None or self._round.round_id != round_id or not self._round.has(worker):
            return None, m.Regroup("this round is over")
        self._members.acknowledged(worker, round_id)
        return self._round, m.Ack()

    def _confirm(self, now: float, round_: RoundState) -> None:
        step = round_.confirmed()
        if step > self._kept.confirmed or (step >= 0 and self._ledger.has_tags_upto(step)):
            self._stepper.settle(now, round_, step, self._kept)

    def _lost(self, now: float, name: str, error: str, borne: int = 0) -> None:
        state = self._members[name].state
        super()._lost(now, name, error, borne)
        self._steering.lost(name)
        if state == "active" and self._round is not None and name in self._round.members:
            self._break_round(now, f"{name} is gone")

    def _doom(self, now: float, name: str, reason: str) -> None:
        super()._doom(now, name, reason)
        if self._round is not None and name in self._round.members:
            self._break_round(now, f"{name} {reason}")

    def _drill(self) -> None:
        name, reason = drill.due(
            self._progress(), self._members.named("active"), self._kept.drilled, self._config.drill
        )
        if name:
            self._kept.drilled = True
            self._members.doom(name, reason)
            self._note("fault", reason, worker=name, drill=True)

    # --- the end, and time -----------------------------------------------------------------------

    def _end(self) -> None:
        if self._outcome:
            return
        self._outcome = "interrupted" if self._stop_reason == "interrupted" else "finished"
        if not self._stepper.last_save_ok:
            self._fail("the final checkpoint could not be written", "free some space, then resume the run")

    def _step(self) -> int:
        return self._kept.confirmed

    def _progress(self) -> float:
        return self._stepper.progress(self._kept, self._kept.confirmed)

    def _pass_time(self, now: float) -> None:
        # The time without any coordinator is nobody's: it must not eat the training budget.
        if self._round is not None or self._kept.confirmed:
            self._kept.elapsed_s += max(0.0, now - self._last_now)
        self._last_now = now

    def _take_over(self, now: float, resumed: bool) -> None:
        self._ledger.renew_all(now)
        data = self._ledger.get_meta("coordinator")
        if data is None:
            return
        self._kept = msgspec.msgpack.decode(data, type=Persisted)
        self._break_reason = "the coordinator came back"
        self._members.restore(now, self._kept.members, all_dead=resumed)
        if not resumed:
            self._steering.restore(self._kept.control)
            self._log.append(
                "fault", reason="the coordinator came back from the store", step=self._kept.confirmed
            )

    def _in_round(self, act: Callable[[float, RoundState, Any], m.Reply]) -> Handler:
        """What only a member of the round in progress may ask."""

        def handle(now: float, request: Any) -> m.Reply:
            round_, refusal = self._round_of(request.worker, request.incarnation, request.round_id)
            return act(now, round_, request) if round_ is not None else refusal

        return handle

    def _handler_table(self) -> dict[type[m.Message], Handler]:
        in_round: dict[type[m.Message], Callable[[float, RoundState, Any], m.Reply]] = {
            m.Next: self._next,
            m.Failed: self._failed,
            m.OutOfMemory: self._out_of_memory,
            m.Ready: self._ready,
            m.Lagging: self._lagging,
            m.GiveBack: self._give_back,
            m.Saved: self._saved,
            m.Recovered: self._recovered,
            m.BadCheckpoint: self._bad_checkpoint,
        }
        kinds = {kind: self._in_round(act) for kind, act in in_round.items()} | self._overseen()
        return kinds | {
            m.Join: self._join,
            m.KvSet: self._kv,
            m.KvGet: self._kv,
            m.KvAdd: self._kv,
            m.Lease: self._desk.lease,
            m.Done: self._desk.done,
        }
