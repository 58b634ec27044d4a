"""What happens between two pushes where servers hold the parameters (parameter servers: Li et al., OSDI 2014;
bounded staleness: Ho et al., NIPS 2013; one order of updates for all servers, and what it settles, are ours).

A worker computes with its lease's samples, brings its part of the gradient to all servers (its *push*), and
says so here. Only then a push gets into an *update*, in one turn with its samples becoming done; servers
apply updates in the order of their numbers, so each number names one state of all shards, and the ledger that
goes with it. Whoever dies before has changed nothing.
"""

from __future__ import annotations

import msgspec

from shoestring.base.errors import CheckpointError
from shoestring.control.controller import ControlConfig
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet import pace, patience
from shoestring.fleet.checkpoints import Keeper
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.membership import Formed, Membership
from shoestring.fleet.persisted import Log, Persisted
from shoestring.fleet.rounds import Guest, RoundState, Saving, StepPlan
from shoestring.fleet.steering import Leave, Steering, StepSize
from shoestring.fleet.stepping import RETRY_S, Stepper


class Serving(Stepper):
    """Hands out orders to workers, one each, and puts their pushes into updates.

    Args:
        others as for Stepper; `steering` is of the workers.
    """

    def __init__(
        self,
        config: FleetConfig,
        ledger: DurableLedger,
        keeper: Keeper,
        log: Log,
        steering: Steering,
        now: float,
    ) -> None:
        super().__init__(config, ledger, keeper, log, steering, now)
        self._together = config.servers.staleness == 0
        self._dropped: list[int] = []
        self._fruitless: dict[str, int] = {}
        self._admit_at_s: dict[str, float] = {}
        self._updated_s = now
        self.servers = Steering(_of_servers(config.control), log, lambda _, count: (), lambda: 0)

    # --- rounds of servers -----------------------------------------------------------------------

    def try_form(self, now: float, members: Membership, kept: Persisted) -> Formed | None:
        """All servers, once they are there."""
        return members.form_servers(kept.lineage, kept.confirmed)

    def formed(self, now: float, formed: Formed, kept: Persisted, pause_s: float) -> None:
        """What the servers hold is of this round from here on."""
        if formed.source_rank < 0:
            kept.lineage, kept.updates = kept.round_id, ()
        for update in kept.updates:
            if update.save:  # a coordinator that is gone had asked for it
                self._keeper.abandon(update.number)
        kept.updates = tuple(_unsaved(update) for update in kept.updates)
        self._dropped.clear()
        self._updated_s = now
        self.servers.formed(now, formed.members, pause_s)

    def release_unsettled(self, now: float, step: int) -> None:
        """What is in no update is to be done again."""
        self._ledger.release_tags(now, 0)

    def leave(self, now: float, worker: str) -> Leave | None:
        """See Stepper; servers, too."""
        return self.servers.leave(now, worker) or self._steering.leave(now, worker)

    def notice(self, round_: RoundState, worker: str, notice: str) -> None:
        """See Stepper. A worker goes alone; a server has its shard saved first."""
        steering = self.servers if worker in round_.members else self._steering
        if notice and (reason := steering.told_to_go(worker, notice)):
            if worker in round_.members:
                self.close(round_, reason)
            self._log.append("decision", action="drain", worker=worker, reason=reason)

    # --- workers come and go ---------------------------------------------------------------------

    def welcome(self, now: float, round_: RoundState, worker: str) -> m.Round:
        """A worker takes part from here on."""
        clock = min((guest.clock for guest in round_.guests.values()), default=0)
        round_.guests[worker] = Guest(clock=clock)
        self._steering.formed(now, tuple(sorted(round_.guests)), 0.0)
        return m.Round(round_.round_id, 0, (worker,), -1, -1, servers=round_.members)

    def goodbye(self, now: float, round_: RoundState, worker: str, kept: Persisted) -> None:
        """A worker is gone, or begins anew: what of it is in no update is to be done again."""
        if worker not in round_.guests:
            return
        guest = round_.guests.pop(worker)
        if guest.order is not None:
            self._ledger.release(guest.lease_id)
            self._dropped.append(guest.order.step)
        if round_.guests:
            self._steering.formed(now, tuple(sorted(round_.guests)), 0.0)
        self._together_if_all(now, round_, "", kept)

    def left(self, now: float, round_: RoundState, worker: str, problem: str, kept: Persisted) -> str:
        """A worker comes back from its visit; one that keeps coming back with nothing is admitted ever later.
        Says what is worth knowing of that: not of one that was told to go."""
        if self._steering.departs(worker):
            problem = ""
        fruitless = round_.guests[worker].pushed < 0
        count = (self._fruitless[worker] if worker in self._fruitless else 0) + 1 if fruitless else 0
        pause_s = patience.pause_s(count)
        self._fruitless[worker], self._admit_at_s[worker] = count, now + pause_s
        self.goodbye(now, round_, worker, kept)
        if not problem:
            return ""
        wait = (
            f"; it has brought nothing {count} times in a row, and waits {pause_s:.1f} s" if pause_s else ""
        )
        return f"{worker} left the servers: {problem}{wait}"

    def is_early(self, now: float, worker: str) -> bool:
        """Whether this worker has to wait before it is admitted."""
        return worker in self._admit_at_s and now < self._admit_at_s[worker]

    # --- what workers ask ------------------------------------------------------------------------

    def visited(
        self, now: float, round_: RoundState, request: m.Next, stop_reason: str, kept: Persisted
    ) -> m.Reply:
        """What a worker does that has brought push `request.step` to all servers (-1: none yet)."""
        guest = round_.guests[request.worker]
        order = guest.order
        if order is not None and request.step == order.step:
            if guest.report is None:
                guest.report = request.report or m.StepReport(0, 0.0, 0.0)
                guest.clock += 1
                self._steering.observe(now, request.worker, guest.report)
            if not self._together and self._open(round_, stop_reason, kept):
                self._update(now, round_, kept, [request.worker])
            self._together_if_all(now, round_, stop_reason, kept)
        elif request.step != guest.pushed:
            return m.Regroup("this visit is over")  # a late copy, or one who was taken for somebody new
        if guest.order is None and (reason := self._steering.departs(request.worker)):
            return m.Regroup(reason)
        if (ending := self._ending(now, round_, stop_reason, kept)) is not None:
            return ending
        if round_.closing or guest.report is not None:
            return m.Wait(RETRY_S)
        if guest.order is None:
            self._plan_next(now, round_, request.worker, kept)
        if guest.order is None:
            return m.Wait(RETRY_S)
        if not guest.given:
            # Once and for all: a repeated or late request must not take news that the worker never gets.
            new = tuple(update for update in kept.updates if update.number > guest.told)
            guest.order, guest.told, guest.given = _with(guest.order, new), kept.confirmed, True
        return guest.order

    def _open(self, round_: RoundState, stop_reason: str, kept: Persisted) -> bool:
        """Whether there may be another update: not once the state that is there is to be the last."""
        return not (round_.closing or stop_reason or self._end_reason(kept, kept.confirmed))

    def _plan_next(self, now: float, round_: RoundState, worker: str, kept: Persisted) -> None:
        todo = self._ledger.counts().todo
        staleness = self._config.servers.staleness
        clocks = [guest.clock for guest in round_.guests.values()]
        ahead = round_.guests[worker].clock - min(clocks)
        if self._together:
            guests = round_.guests.items()
            if any(guest.order is not None for _, guest in guests):
                return  # the batch under way was planned without it
            if any(self._steering.departs(name) for name, _ in guests):
                return  # it goes first, and is told so when it asks
        elif 0 < staleness < ahead:
            return
        if not todo:
            return
        share = self.progress(kept, kept.confirmed)
        batch = pace.batch_at(share, self._config.pace)
        self._steering.steer(now, kept.confirmed + 1, batch, pace.remaining_s(share, kept.elapsed_s))
        parts = self._steering.parts(min(batch, todo) if self._together else batch)
        whole = self._steering.size_of(parts)
        for name in round_.guests if self._together else (worker,):
            self._give(now, round_.guests[name], name, parts[name], whole, share, kept)

    def _give(
        self,
        now: float,
        guest: Guest,
        worker: str,
        part: int,
        whole: StepSize,
        share: float,
        kept: Persisted,
    ) -> None:
        count = part if self._together else max(1, part)
        kept.pushes += 1
        lease = self._ledger.lease(now, worker, count, tag=kept.pushes) if count else None
        if lease is None:
            return
        guest.lease_id, guest.report, guest.given = lease.lease_id, None, False
        guest.samples = sum(stop - start for start, stop in lease.ranges)
        guest.order = self._steering.order(kept.pushes, worker, tuple(lease.ranges), whole, share)

    # --- updates -----------------------------------------------------------------------------------

    def _together_if_all(self, now: float, round_: RoundState, stop_reason: str, kept: Persisted) -> None:
        """Bulk-synchronous: one update once all parts of the batch are with the servers."""
        if not self._together or not self._open(round_, stop_reason, kept):
            return
        open_ = [name for name, guest in round_.guests.items() if guest.order is not None]
        if open_ and all(round_.guests[name].report is not None for name in open_):
            self._update(now, round_, kept, open_)

    def _update(self, now: float, round_: RoundState, kept: Persisted, workers: list[str]) -> None:
        """These workers' pushes become the next update, and their samples are done."""
        guests = {name: round_.guests[name] for name in sorted(workers)}
        orders = [guest.order for guest in guests.values() if guest.order is not None]
        for name, guest in guests.items():
            self._ledger.complete(now, guest.lease_id, name)
        kept.confirmed += 1
        number = kept.confirmed
        save = self._due(now, round_, kept)
        update = m.Update(
            number,
            tuple(order.step for order in orders),
            orders[0].progress,
            orders[0].lr_factor,
            self._save_as_of(now, round_, number, save) if save else "",
            tuple(self._dropped),
        )
        self._dropped.clear()
        kept.updates = (*kept.updates, update)
        self._note_update(now, round_, number, guests)
        for guest, order in zip(guests.values(), orders, strict=True):
            guest.pushed, guest.order, guest.report = order.step, None, None

    def _due(self, now: float, round_: RoundState, kept: Persisted) -> str:
        if round_.saving is not None:
            return ""
        step, config = kept.confirmed, self._config.checkpoint
        return self._end_reason(kept, step) or pace.checkpoint_due(
            step, now, self._saved_step, self._saved_s, config
        )

    def _save_as_of(self, now: float, round_: RoundState, number: int, reason: str) -> str:
        """Have the state after this very update saved; work may go on meanwhile."""
        try:
            directory = self._keeper.begin(number)
        except CheckpointError as error:
            self._save_failed(now, round_, number, str(error))
            return ""
        round_.saving = Saving(
            number, directory, reason, now, ledger=self._ledger.snapshot_bytes(in_flight="todo")
        )
        return directory

    def _note_update(self, now: float, round_: RoundState, number: int, guests: dict[str, Guest]) -> None:
        samples = {name: guest.samples for name, guest in guests.items()}
        round_.plans[number] = StepPlan(number, {}, samples, self._updated_s)
        round_.reports[number] = {n: g.report for n, g in guests.items() if g.report is not None}
        self._record_step(now, round_, number)
        round_.drop_before(number + 1)
        self._updated_s = now

    def _of_all(self, reports: dict[str, m.StepReport]) -> tuple[dict[str, float], dict[str, float]]:
        """Each tells of its own part: metrics as means over samples, counts as sums."""
        total = sum(report.samples for report in reports.values()) or 1
        metrics: dict[str, float] = {}
        counts: dict[str, float] = {}
        for report in reports.values():
            for name, value in report.metrics.items():
                metrics[name] = (metrics[name] if name in metrics else 0.0) + value * report.samples / total
            for name, value in report.counts.items():
                counts[name] = (counts[name] if name in counts else 0.0) + value
        return metrics, counts

    # --- what servers ask ----------------------------------------------------------------------------

    def served(
        self, now: float, round_: RoundState, request: m.Next, stop_reason: str, kept: Persisted
    ) -> m.Reply:
        """What a server does that has applied all updates up to `request.step`."""
        server, version = request.worker, request.step
        if request.report is not None:
            self.servers.observe(now, server, request.report)
        round_.note_applied(server, version, None)
        with_all = round_.confirmed()
        kept.updates = tuple(update for update in kept.updates if update.number > with_all)
        new = tuple(update for update in kept.updates if update.number > version)
        if new:
            return m.Updates(new)
        if (saving := round_.saving) is not None and saving.step == version and server not in saving.parts:
            # Where nothing was due at that update, this is how servers are asked; others know it already.
            return m.Updates((m.Update(version, (), 0.0, save=saving.directory),))
        if closing := self.servers.steer(now, kept.confirmed, 1, self._remaining_s(kept)):
            self.close(round_, closing)
        if (ending := self._ending(now, round_, stop_reason, kept)) is not None:
            return m.Updates() if isinstance(ending, m.Wait) else ending
        if round_.closing:
            return self._closed(now, round_, kept)
        return m.Updates()

    def _remaining_s(self, kept: Persisted) -> float:
        return pace.remaining_s(self.progress(kept, kept.confirmed), kept.elapsed_s)

    def _closed(self, now: float, round_: RoundState, kept: Persisted) -> m.Reply:
        """A server has to go: what it holds is saved first, and no update comes after that."""
        if round_.saving is None and kept.confirmed != self._saved_step:
            if kept.confirmed in round_.saved:  # it could not be saved: better slow than lost
                self.servers.stay()
                round_.closing = ""
                return m.Updates()
            self._save_as_of(now, round_, kept.confirmed, round_.closing)
        return m.Updates() if kept.confirmed != self._saved_step else m.Regroup(round_.closing)

    def _ending(self, now: float, round_: RoundState, stop_reason: str, kept: Persisted) -> m.Reply | None:
        """The run is over once its last state is saved; None while it is not."""
        end = stop_reason or self._end_reason(kept, kept.confirmed)
        if not end:
            return None
        if round_.saving is not None:
            return m.Wait(RETRY_S)
        if kept.confirmed != self._saved_step and kept.confirmed not in round_.saved:
            self._save_as_of(now, round_, kept.confirmed, end)
            return m.Wait(RETRY_S)
        return m.Stop(end)

    # --- saving ----------------------------------------------------------------------------------------

    def saved(self, now: float, round_: RoundState, request: m.Saved, kept: Persisted) -> m.Reply:
        """See Stepper."""
        if round_.saving is None or round_.saving.step != request.step:
            known = request.step in round_.saved
            return m.Committed(request.step, known and round_.saved[request.step])
        return super().saved(now, round_, request, kept)

    def drop_saving(self, round_: RoundState, kept: Persisted) -> None:
        """See Stepper."""
        super().drop_saving(round_, kept)
        kept.updates = tuple(_unsaved(update) for update in kept.updates)


def _of_servers(config: ControlConfig) -> ControlConfig:
    """Servers have equal shards, so all that can be done about a slow one is a new start."""
    return config.model_copy(update={"policy": "none" if config.policy == "none" else "restart"})


def _with(order: m.Order, updates: tuple[m.Update, ...]) -> m.Order:
    return msgspec.structs.replace(order, updates=updates)


def _unsaved(update: m.Update) -> m.Update:
    return msgspec.structs.replace(update, save="")
