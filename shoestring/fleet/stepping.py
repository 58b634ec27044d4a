"""What happens at the boundary between two steps: plan, save, close, stop, settle (source: ours)."""

from __future__ import annotations

from collections import deque

from shoestring.base.errors import CheckpointError
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet import pace
from shoestring.fleet.checkpoints import Keeper, Manifest
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.membership import Formed, Membership
from shoestring.fleet.persisted import Log, Persisted
from shoestring.fleet.rounds import RoundState, Saving, StepPlan
from shoestring.fleet.steering import Leave, Steering

RETRY_S = 0.01
RATE_STEPS = 20


class Stepper:
    """Decides each boundary once, and settles the ledger when all members have applied a step."""

    def __init__(
        self,
        config: FleetConfig,
        ledger: DurableLedger,
        keeper: Keeper,
        log: Log,
        steering: Steering,
        now: float,
    ) -> None:
        self._config = config
        self._ledger = ledger
        self._keeper = keeper
        self._log = log
        self._steering = steering
        self._saved_step, self._saved_s = 0, now  # step 0 can be made again from the seed
        self._recent: deque[tuple[float, dict[str, float]]] = deque(maxlen=RATE_STEPS)
        self.metrics: dict[str, float] = {}
        self.last_save_ok = True

    def progress(self, kept: Persisted, step: int) -> float:
        """Share of the run that is over once `step` is applied, in [0, 1].

        A boundary is decided when its first member asks, and the last step of the others may not
        be confirmed yet; `step` and what was handed out do not depend on who is quicker, so neither
        do schedules nor the number of steps.
        """
        consumed = 1.0 - self._ledger.counts().todo / self._ledger.spec.total
        return pace.progress(step, kept.elapsed_s, consumed, self._config.pace)

    # --- rounds --------------------------------------------------------------------------------

    def try_form(self, now: float, members: Membership, kept: Persisted) -> Formed | None:
        """A round that can start now."""
        return members.try_form(now, kept.confirmed)

    def formed(self, now: float, formed: Formed, kept: Persisted, pause_s: float) -> None:
        """A round begins after a pause of the whole fleet."""
        self._steering.formed(now, formed.members, pause_s)

    def release_unsettled(self, now: float, step: int) -> None:
        """A round begins with the state of `step`: what was in flight beyond it is to be done again."""
        self._ledger.release_tags(now, step)

    def leave(self, now: float, worker: str) -> Leave | None:
        """Whether this worker, which asks for a round, has to go; asked once."""
        return self._steering.leave(now, worker)

    def restored(self, now: float, step: int) -> None:
        """The fleet starts again from the checkpoint of `step` (0: from the seed); newer ones are void."""
        self._saved_step, self._saved_s = step, now

    def close(self, round_: RoundState, reason: str) -> None:
        """End the round at its next boundary."""
        round_.closing = round_.closing or reason

    def notice(self, round_: RoundState, worker: str, notice: str) -> None:
        """A member's machine will be taken away, where there is a notice: the round ends in good order."""
        if notice and (reason := self._steering.told_to_go(worker, notice)):
            self.close(round_, reason)
            step = round_.newest_step()
            self._log.append("decision", step=step, action="drain", worker=worker, reason=reason)

    def boundary(
        self, now: float, round_: RoundState, worker: str, step: int, stop_reason: str, kept: Persisted
    ) -> m.Reply:
        """What a member that has applied `step` does next; all members get the same answer."""
        if step + 1 in round_.plans:
            return round_.plans[step + 1].orders[worker]
        if round_.saving is not None and round_.saving.step == step:
            return m.Save(step, round_.saving.directory)
        all_here = round_.confirmed() >= step
        end = stop_reason or self._end_reason(kept, step)
        save = end or pace.checkpoint_due(step, now, self._saved_step, self._saved_s, self._config.checkpoint)
        if self._steering.leaving and not save:
            save = "a worker leaves, and may hold what no other does"
        if save and step not in round_.saved and step != self._saved_step:
            return self._begin_saving(now, round_, step, save)
        if end or round_.closing:
            if not all_here:
                return m.Wait(RETRY_S)
            return m.Stop(end) if end else m.Regroup(round_.closing)
        if self._ledger.counts().todo == 0:
            return m.Wait(RETRY_S)
        return self._plan(now, round_, step + 1, kept).orders[worker]

    def settle(self, now: float, round_: RoundState, step: int, kept: Persisted) -> None:
        """Every member has applied `step`: its samples are in every state that can survive."""
        self._ledger.complete_tags(now, step)
        for done in range(kept.confirmed + 1, step + 1):
            self._record_step(now, round_, done)
        kept.confirmed = max(kept.confirmed, step)
        round_.drop_before(step)

    def fail_samples(self, now: float, request: m.Failed) -> None:
        """Take samples that cannot be used out of the step's lease.

        Raises:
            LedgerError: when too large a share of all samples is dead.
        """
        before = self._ledger.counts().dead
        self._ledger.fail_tagged(now, request.step, request.worker, dict(request.failures))
        dead = self._ledger.counts().dead - before
        self._log.append(
            "fault",
            step=request.step,
            worker=request.worker,
            failed=[list(f) for f in request.failures],
            reason=f"{len(request.failures)} samples failed, {dead} for good: {request.failures[0][1]}",
        )

    def give_back(self, round_: RoundState, request: m.GiveBack) -> None:
        """A late worker's step goes on without these samples: others get them later."""
        count = self._ledger.give_back_tagged(request.step, request.worker, request.ranges)
        if count:
            round_.gave_back.setdefault(request.step, {})[request.worker] = count

    # --- saving ------------------------------------------------------------------------------

    def _begin_saving(self, now: float, round_: RoundState, step: int, reason: str) -> m.Reply:
        try:
            round_.saving = Saving(step, self._keeper.begin(step), reason, now)
        except CheckpointError as error:
            self._save_failed(now, round_, step, str(error))
            return m.Wait(RETRY_S)
        return m.Save(step, round_.saving.directory)

    def saved(self, now: float, round_: RoundState, request: m.Saved, kept: Persisted) -> m.Reply:
        """Collect the parts; commit model and ledger as one when all are there."""
        saving = round_.saving
        if saving is None or saving.step != request.step:
            known = request.step in round_.saved
            return (
                m.Committed(request.step, round_.saved[request.step]) if known else m.Regroup("no such save")
            )
        saving.parts[request.worker] = request
        if len(saving.parts) < len(round_.members):
            return m.Wait(RETRY_S)
        errors = [f"{name}: {part.error}" for name, part in sorted(saving.parts.items()) if part.error]
        if errors:
            self._save_failed(now, round_, saving.step, "; ".join(errors))
        else:
            self._commit(now, round_, saving, kept)
        round_.saving = None
        return m.Committed(request.step, round_.saved[request.step])

    def drop_saving(self, round_: RoundState, kept: Persisted) -> None:
        """The round broke: what was half saved does not count."""
        if round_.saving is not None:
            self._keeper.abandon(round_.saving.step)
            round_.saving = None

    def _commit(self, now: float, round_: RoundState, saving: Saving, kept: Persisted) -> None:
        files = {name: entry for part in saving.parts.values() for name, entry in part.files.items()}
        ledger = saving.ledger or self._ledger.snapshot_bytes(in_flight="todo")
        manifest = Manifest(saving.step, kept.elapsed_s, ledger, files)
        try:
            size_bytes = self._keeper.commit(manifest)
        except CheckpointError as error:
            self._save_failed(now, round_, saving.step, str(error))
            return
        round_.saved[saving.step] = self.last_save_ok = True
        self._saved_step, self._saved_s = saving.step, now
        self._log.append(
            "checkpoint",
            step=saving.step,
            size_bytes=size_bytes,
            pause_s=round(now - saving.began_s, 4),
            path=saving.directory.removesuffix(".tmp"),
            reason=saving.reason,
        )

    def _save_failed(self, now: float, round_: RoundState, step: int, error: str) -> None:
        self._keeper.abandon(step)
        round_.saved[step] = self.last_save_ok = False
        self._saved_s = now  # the next try comes after a full interval, not at once
        self._log.append(
            "fault", step=step, reason=f"checkpoint failed, the run goes on with the one before: {error}"
        )

    # --- planning ----------------------------------------------------------------------------

    def _plan(self, now: float, round_: RoundState, step: int, kept: Persisted) -> StepPlan:
        share = self.progress(kept, step - 1)
        batch = min(pace.batch_at(share, self._config.pace), self._ledger.counts().todo)
        left_s = pace.remaining_s(share, kept.elapsed_s)
        if closing := self._steering.steer(now, step, batch, left_s):
            self.close(round_, closing)
        window_s = self._config.pace.window_s
        parts = self._steering.parts(batch)
        if window_s:
            parts = self._steering.parts_of_window(now, window_s, batch, self._ledger.counts().todo)
        orders, whole = {}, self._steering.size_of(parts)
        for worker in round_.members:
            lease = self._ledger.lease(now, worker, parts[worker], tag=step) if parts[worker] else None
            ranges = tuple(lease.ranges) if lease else ()
            orders[worker] = self._steering.order(step, worker, ranges, whole, share, window_s)
        round_.plans[step] = StepPlan(step, orders, parts, now)
        return round_.plans[step]

    def _end_reason(self, kept: Persisted, step: int) -> str:
        if self._ledger.finished:
            return "all samples are done"
        bound = self._config.pace
        if bound.steps and step >= bound.steps:
            return "all steps are done"
        if bound.budget_s and kept.elapsed_s >= bound.budget_s:
            return "the time budget is spent"
        return ""

    # --- records -------------------------------------------------------------------------------

    def _record_step(self, now: float, round_: RoundState, step: int) -> None:
        reports = round_.reports[step] if step in round_.reports else {}
        if not reports:
            return
        metrics, counts = self._of_all(reports)
        self.metrics = dict(metrics)
        plan = round_.plans[step] if step in round_.plans else None
        gave_back = round_.gave_back[step] if step in round_.gave_back else {}
        if plan is not None and step > round_.step:
            self._steering.step_took(step, now - plan.at_s)
        self._recent.append((now, {"samples": float(sum(r.samples for r in reports.values())), **counts}))
        self._log.append(
            "step",
            step=step,
            round_id=round_.round_id,
            metrics=metrics,
            counts=counts,
            batch=sum(plan.samples.values()) if plan else 0,
            took_s=round(now - plan.at_s, 5) if plan else 0.0,
            todo=self._ledger.counts().todo,
            done=self._ledger.counts().done,
            workers={
                name: {
                    "samples": r.samples,
                    "compute_s": round(r.compute_s, 5),
                    "exchange_s": round(r.exchange_s, 5),
                    "memory_bytes": r.memory_bytes,
                    **({"gave_back": gave_back[name]} if name in gave_back else {}),
                }
                for name, r in sorted(reports.items())
            },
        )

    def _of_all(self, reports: dict[str, m.StepReport]) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics and counts of the whole step: each member tells the same."""
        first = reports[min(reports)]
        return first.metrics, first.counts

    def rates(self) -> dict[str, float]:
        """Counts per second over the last steps, e.g. `tokens_per_s`."""
        if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
            return {}
        span_s = self._recent[-1][0] - self._recent[0][0]
        names = self._recent[-1][1]
        later = list(self._recent)[1:]
        return {f"{n}_per_s": sum(c[n] for _, c in later if n in c) / span_s for n in names}
