"""The coordinator of a job over rows: plain shards from the ledger, each one's output committed with its
`done` (source: AntBatchInfer, the master: one queue of index-only shards, worker life cycle; departures,
suspects and verdicts are ours).

`handle`, `tick` and `flush` are all there is, as of `Coordinator`: what `handle` changed is durable once
`flush` returns, and answers leave after that, not before. After the commit, and never before, outputs are
published.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from shoestring.base.errors import ShoestringError
from shoestring.data.ranges import size
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet import shard_policy
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.departures import Departures
from shoestring.fleet.membership import Membership
from shoestring.fleet.names import worker_names
from shoestring.fleet.outputs_spec import OutputsSpec
from shoestring.fleet.overseer import Handler, Overseer, dismissed
from shoestring.fleet.persisted import Log
from shoestring.fleet.publisher import Publisher
from shoestring.fleet.shard_desk import ShardDesk, holder_name
from shoestring.fleet.shard_paces import Paces
from shoestring.fleet.shard_progress import Progress, Telling, too_many

IDLE_RETRY_S = 0.1
AHEAD_RETRY_S = 0.5
IDLE_FOR_S = 2.0
ELAPSED_STEP_S = 10.0
MINE = "shards"


class KeptShards(msgspec.Struct):
    """What outlives the coordinator beside the ledger, in the same transaction."""

    members: bytes = b""
    elapsed_s: float = 0.0
    lost_rows: int = 0


class ShardCoordinator(Overseer):
    """Answers workers and the supervisor.

    Args:
        config: the fleet's settings.
        spec: sizes and bounds.
        ledger: the durable ledger, whose positions are the rows.
        publisher: makes committed outputs visible.
        log: the run record.
        now: the time at which this coordinator takes over.
        resumed: whether no worker of an earlier coordinator can be alive (a resumed run).

    Raises:
        LedgerError: also from `flush`, when the store cannot be written.
        SinkError: the sink belongs to another job, or cannot be written.
    """

    _INTERRUPTED = "interrupted by the user: workers finish what they have in hand, or give it back"

    def __init__(
        self,
        config: FleetConfig,
        spec: OutputsSpec,
        ledger: DurableLedger,
        publisher: Publisher,
        log: Log,
        now: float,
        resumed: bool = False,
    ) -> None:
        # One shard that counts shows that a worker is healthy.
        members = config.members.model_copy(update={"healthy_steps": 1})
        names = worker_names(config.members.workers)
        super().__init__(Membership(members, names), config.members, log, now)
        self._config, self._spec, self._ledger = config, spec, ledger
        self._most = max(config.members.max_workers, config.members.workers)
        self._borne = ledger.spec.max_attempts + math.ceil(math.log2(max(2, spec.shard_rows))) + 1
        self._departures = Departures(spec.drain_s)
        self._idle: dict[str, float] = {}
        self._asked_back: set[str] = set()
        self._paces = Paces()
        self._kept, self._flushed = KeptShards(), b""
        self._publisher = publisher
        outputs = ledger.outputs()
        self._progress = Progress(ledger.spec.total, outputs, now)
        self._desk = ShardDesk(ledger, spec.shard_rows, now, all_dead=resumed)
        self._take_over(now, resumed)
        for done in publisher.recover(outputs, alone=resumed):
            self._note("decision", done, action="recover")
        self._look_at_errors()
        self._end()

    # --- the outside -----------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """What happens by itself: hung workers, expired leases, workers that do not leave."""
        self._pass_time(now)
        try:
            if self._excuse(now):
                self._ledger.renew_all(now)
            self._find_hung(now)
            for name, reason in self._departures.overdue(now).items():
                if not self._members[name].doomed:
                    self._doom(now, name, reason)
            if count := self._desk.expire(now):
                self._note("fault", f"{count} shards were taken back: no sign of life of their holders")
            self._given_up()
            if (event := self._progress.rows_event(now)) is not None and not self._outcome:
                self._log.append("rows", **event)
            self._grow(now)
            self._lose_hope()
        except ShoestringError as problem:
            self._fail(problem.what, problem.todo)

    def flush(self) -> None:
        """Make all that was handled so far durable, in one transaction; then publish it.

        Raises:
            LedgerError: the store cannot be written; this coordinator must not answer any more.
        """
        self._kept.members = self._members.snapshot()
        self._kept.lost_rows = self._lost_before + self._desk.lost_rows
        rounded = self._kept.elapsed_s // ELAPSED_STEP_S * ELAPSED_STEP_S
        kept = msgspec.msgpack.encode(msgspec.structs.replace(self._kept, elapsed_s=rounded))
        if kept != self._flushed:
            self._ledger.put_meta(MINE, kept)
            self._flushed = kept
        self._ledger.commit()
        try:
            self._publisher.publish()
            self._end()
        except ShoestringError as problem:
            self._fail(problem.what, problem.todo)

    @property
    def calm(self) -> bool:
        """Whether ticks may be rare: requests do the rest."""
        return not self._outcome and not self._desk.finished

    @property
    def standing(self) -> tuple[int, int]:
        """(-1: there are no rounds, rows in committed output or in that of the next commit)."""
        return -1, self._progress.totals.rows

    # --- workers ---------------------------------------------------------------------------

    def _lease(self, now: float, request: m.ShardLease) -> m.Reply:
        worker = request.worker
        if self._outcome or self._stop_reason or self._departures.of(worker) is not None:
            return m.Stop(self._outcome or self._stop_reason or "this worker is to leave")
        if (again := self._desk.repeated(worker, request.incarnation, request.request)) is not None:
            return again
        held, usual, todo = self._held(worker), self._spec.shard_rows, self._desk.todo
        share = self._share(now, worker)
        if held and (self._others_idle(now, worker) or not shard_policy.may_hold(held, usual, todo, share)):
            return m.Wait(AHEAD_RETRY_S)  # what is left is for those who have nothing, or will have it sooner
        count = shard_policy.shard_rows(usual, todo, share)
        shard = self._desk.lease(now, worker, request.incarnation, request.request, count)
        if shard is not None:
            self._paces.began(now, worker, request.incarnation)
            self._idle.pop(worker, None)
            self._asked_back.discard(worker)
            return shard
        if not held:
            self._idle[worker] = now
        return m.Wait(AHEAD_RETRY_S if held else IDLE_RETRY_S)

    def _done(self, now: float, request: m.ShardDone) -> m.Reply:
        if self._members.current(request.worker, request.incarnation):
            self._alive(now, request.worker)
        # One that was replaced is told what became of its shard, too: what is late is removed by it.
        holder = holder_name(request.worker, request.incarnation)
        outcome, output = self._desk.done(now, holder, request.lease_id, request.staged)
        if output is not None:
            self._publisher.add(output)
            self._progress.counted(now, request.staged)
            self._paces.counted(now, request.worker, request.incarnation, request.staged.rows)
            self._members.advanced(request.worker, self._step())
            self._look_at_errors()
        return m.DoneReply(outcome.name.lower())

    def _back(self, now: float, request: m.ShardBack) -> m.Reply:
        holder = holder_name(request.worker, request.incarnation)
        if rows := self._desk.back(holder, request.lease_id):
            self._asked_back.discard(request.worker)
            reason = f"{request.worker} gives {rows} rows back: {request.reason}"
            self._log.append("back", step=self._step(), worker=request.worker, rows=rows, reason=reason)
        return m.Ack()

    def _broken(self, now: float, request: m.JobBroken) -> m.Reply:
        if not self._outcome:
            self._fail(request.what, request.todo)
        return m.Ack()

    def _tell(self, now: float, request: m.ShardTold) -> m.Reply:
        worker = request.worker
        telling = self._progress.telling(worker, request.incarnation)
        telling.pools, telling.begun = request.pools, request.begun
        self._record(telling, request)
        if (pools := self._progress.pools_event(now, telling)) is not None:
            self._log.append("pools", worker=worker, pools=pools)
        if request.notice:
            self._depart(now, worker, request.notice)
        return self._orders(now, worker)

    def _record(self, telling: Telling, request: m.ShardTold) -> None:
        """Changes and faults that are new: a repeated message tells some again."""
        new_changes = request.changes[max(0, telling.changes - request.changes_from) :]
        new_faults = request.faults[max(0, telling.faults - request.faults_from) :]
        telling.changes = max(telling.changes, request.changes_from + len(request.changes))
        telling.faults = max(telling.faults, request.faults_from + len(request.faults))
        for change in new_changes:
            self._note(
                "decision", change.reason, action=change.action, pool=change.pool, worker=request.worker,
                fields=change.fields,
            )  # fmt: skip
        for fault in new_faults:
            self._note("fault", fault, worker=request.worker)

    def _orders(self, now: float, worker: str) -> m.ShardOrders:
        if self._outcome:
            return m.ShardOrders(0.0, f"the job has {self._outcome}")
        if (departure := self._departures.of(worker)) is not None:
            return m.ShardOrders(max(0.0, departure.until_s - now), departure.reason)
        wanted, reason = self._wanted_back(now)
        if worker not in wanted:
            return m.ShardOrders()
        if worker not in self._asked_back:
            self._asked_back.add(worker)
            text = f"{worker} is asked for {wanted[worker]} shards: {reason}"
            self._log.append("decision", step=self._step(), action="give_back", worker=worker, reason=text)
        return m.ShardOrders(reason=reason, give_back=wanted[worker])

    def _heartbeat(self, now: float, request: m.Heartbeat) -> m.Reply:
        reply = super()._heartbeat(now, request)
        if isinstance(reply, m.Ack):
            self._desk.renew(now, holder_name(request.worker, request.incarnation))
        return reply

    # --- who comes and goes ----------------------------------------------------------------

    def _alive(self, now: float, worker: str) -> None:
        member = self._members[worker]
        self._members.heard(now, worker, "shards", 0.0)
        self._desk.renew(now, holder_name(worker, member.incarnation))
        if member.state == "starting":
            self._members.admit(worker)

    def _ended(self, now: float, ended: m.Exit) -> None:
        departure = self._departures.of(ended.worker)
        if departure is None:
            super()._ended(now, ended)
            return
        left = self._desk.left(holder_name(ended.worker, ended.incarnation))
        self._members.retire(now, ended.worker, again=True)
        self._forget(ended.worker)
        text = f"{ended.worker} has left: {departure.reason}"
        self._note("decision", text, action="left", worker=ended.worker, shards=left, code=ended.code)

    def _lost(self, now: float, name: str, error: str, borne: int = 0) -> None:
        blamed = self._desk.lost(holder_name(name, self._members[name].incarnation))
        # While losses narrow down which row is to blame, they are no reason to give the worker up.
        super()._lost(now, name, error, self._borne if blamed else 0)
        self._forget(name)
        self._given_up()

    def _forget(self, name: str) -> None:
        self._departures.gone(name)
        self._progress.gone(name)
        self._idle.pop(name, None)
        self._asked_back.discard(name)

    def _given_up(self) -> None:
        """Say which rows are dead now, and look whether these are too many."""
        if new := self._desk.take_new_dead():
            places = shard_policy.describe(new)
            self._note("fault", f"rows given up, since workers are lost with them: {places}", rows=size(new))
            self._look_at_errors()

    def _heed(self, now: float, request: m.SupervisorTick) -> None:
        super()._heed(now, request)
        for worker, notice in request.notices:
            if worker in self._members.named("starting", "active"):
                self._depart(now, worker, notice)
        if request.interrupt:
            for worker in self._members.named("active"):
                self._departures.order(now, worker, "interrupted by the user")

    def _depart(self, now: float, worker: str, notice: str) -> None:
        if self._departures.order(now, worker, notice):
            text = f"{worker} leaves within {self._spec.drain_s:g} s: {notice}"
            self._note("decision", text, action="drain", worker=worker)

    def _grow(self, now: float) -> None:
        known = self._members.named("absent", "starting", "waiting", "active", "given_up")
        coming = self._members.named("absent", "starting")
        if self._outcome or self._stop_reason:
            return
        count, reason = shard_policy.grow(
            self._most, len(known), len(coming), self._desk.todo, self._spec.shard_rows,
            len(self._members.named("active")),
        )  # fmt: skip
        if count:
            added = self._members.add(now, count)
            self._note("decision", f"{', '.join(added)} added: {reason}", action="add")

    # --- the tail ----------------------------------------------------------------------------

    def _held(self, worker: str) -> int:
        return self._desk.held(holder_name(worker, self._members[worker].incarnation))

    def _share(self, now: float, worker: str) -> float:
        """Of the rate of all active workers, this one's part."""
        active = [(name, self._members[name].incarnation) for name in self._members.named("active")]
        mine = (worker, self._members[worker].incarnation)
        others = [one for one in active if one != mine]
        return self._paces.share(now, mine, others, self._spec.shard_rows) if others else 1.0

    def _others_idle(self, now: float, worker: str) -> list[str]:
        """Others who asked of late, and have nothing."""
        return [
            name
            for name, asked_s in self._idle.items()
            if name != worker and now - asked_s < IDLE_FOR_S and self._departures.of(name) is None
        ]

    def _wanted_back(self, now: float) -> tuple[dict[str, int], str]:
        idle = self._others_idle(now, "")
        if not idle or self._desk.todo:
            return {}, ""
        held = {name: self._held(name) for name in self._members.named("active")}
        return shard_policy.give_back(held, idle)

    # --- the end, and time ---------------------------------------------------------------------

    def _nothing_comes(self) -> bool:
        """Whether nobody is left who could finish what it has in hand."""
        return not self._members.named("active") and not self._desk.finished

    def _look_at_errors(self) -> None:
        spec, progress = self._spec, self._progress
        why = too_many(
            progress.totals, self._desk.pending, progress.rows, spec.max_error_share, spec.min_errors
        )
        if why:
            self._fail(
                why,
                f"look at column `error` of the output in {spec.sink.path}; mend the data or the stage, or "
                f"raise limits.max_error_share, then resume the run",
            )

    def _end(self) -> None:
        if self._outcome or not self._desk.finished:
            return
        facts = self._progress.facts()
        if self._publisher.finish(facts):
            self._outcome = "finished"
            told = {"elapsed_s": round(self._kept.elapsed_s, 3), "lost_rows": self._kept.lost_rows}
            self._log.append("summary", step=self._step(), **facts, **told)

    def _step(self) -> int:
        return self._progress.totals.shards

    def _pass_time(self, now: float) -> None:
        if not self._outcome:
            self._kept.elapsed_s += max(0.0, now - self._last_now)
        self._last_now = now

    def _status(self, now: float) -> m.Status:
        job, counts = self._progress.status(now), self._ledger.counts()
        workers: dict[str, dict[str, float | str]] = {
            name: {"state": self._members[name].state, "shards": float(self._held(name))}
            for name in self._members.named("absent", "starting", "waiting", "active", "given_up")
        }
        return m.Status(
            step=job.shards,
            progress=job.done / job.rows,
            elapsed_s=self._kept.elapsed_s,
            eta_s=job.eta_s,
            rates={"rows": job.rows_per_s},
            workers=workers,
            todo=counts.todo,
            doing=counts.doing,
            done=counts.done,
            dead=counts.dead,
            messages=self._told(),
            job=job,
        )

    def _take_over(self, now: float, resumed: bool) -> None:
        data = self._ledger.get_meta(MINE)
        if data is not None:
            self._kept = msgspec.msgpack.decode(data, type=KeptShards)
            self._members.restore(now, self._kept.members, all_dead=resumed)
            if not resumed:
                self._log.append(
                    "fault", reason="the coordinator came back from the store", step=self._step()
                )
        self._lost_before = self._kept.lost_rows

    def _of_living(self, act: Handler) -> Handler:
        """What only the living process of a worker may ask."""

        def handle(now: float, request: Any) -> m.Reply:
            if not self._members.current(request.worker, request.incarnation):
                return dismissed()
            self._alive(now, request.worker)
            return act(now, request)

        return handle

    def _handler_table(self) -> dict[type[m.Message], Handler]:
        kinds: dict[type[m.Message], Handler] = {
            m.ShardLease: self._lease,
            m.ShardBack: self._back,
            m.JobBroken: self._broken,
            m.ShardTold: self._tell,
        }
        of_living = {kind: self._of_living(act) for kind, act in kinds.items()}
        return self._overseen() | of_living | {m.ShardDone: self._done}
