"""The controller's hand on the fleet: what it is told, what it decides, what comes of it (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from shoestring.control.controller import ControlConfig, Controller, Facts
from shoestring.control.decisions import AddWorkers, Decision, RemoveWorker, Restart, in_record
from shoestring.control.monitor import Monitor
from shoestring.control.splits import split
from shoestring.fleet.messages import Order, OutOfMemory, StepReport
from shoestring.fleet.persisted import Log

STATIC = ("none", "fixed")
"""Policies that go by no speed."""
LONG_S = 0.1
"""A step of that many seconds, for all its members, is worth a message more of each that tells its speed."""
SPARE = 1.3
"""What a worker gets for a stretch, in what it is expected to do in it."""


@dataclass(frozen=True)
class Leave:
    """A worker that goes at the next boundary: why, and whether another process takes its place."""

    reason: str
    again: bool


@dataclass(frozen=True)
class StepSize:
    """A step of all members: samples, and the most passes that one of them makes."""

    batch: int
    passes: int


@dataclass
class _Away:
    """A worker between its old process and the first round of the new one."""

    since_s: float
    pauses_s: float = 0.0


class Steering:
    """Monitor and controller of one fleet.

    Args:
        config: of the policy.
        log: decisions and their effects go there.
        add: starts so many more workers, and says which.
        room: how many that may be.
    """

    def __init__(
        self,
        config: ControlConfig,
        log: Log,
        add: Callable[[float, int], tuple[str, ...]],
        room: Callable[[], int],
    ) -> None:
        self._policy = config.policy
        self._log = log
        self._add = add
        self._room = room
        self._monitor = Monitor(config.short_window_s, config.long_window_s)
        self._controller = Controller(config, self._monitor)
        self._warm: set[str] = set()
        self._leaving: dict[str, Leave] = {}
        self._away: dict[str, _Away] = {}
        self._restart_s = 0.0
        self._step_s = math.inf

    # --- what it is told -----------------------------------------------------------------------

    def joined(self, worker: str, micro_batch: int) -> None:
        """A worker says how many samples it takes in one pass."""
        self._controller.usual[worker] = micro_batch

    def observe(self, now: float, worker: str, report: StepReport) -> None:
        """A worker has taken a step. The first one of a process fills caches and pools: it tells no speed."""
        if worker not in self._warm:
            self._warm.add(worker)
            return
        # Whoever was stopped may have nothing that counts, and must not be taken for unknown: it is at most
        # as quick as what it had begun tells.
        samples = max(report.samples, report.begun)
        if self._monitor.observe(now, worker, samples, report.compute_s, report.passes):
            self._controller.hurry()

    def lost(self, worker: str) -> None:
        """A worker's process is gone."""
        self._forget(worker)
        self._leaving.pop(worker, None)

    def formed(self, now: float, members: tuple[str, ...], pause_s: float) -> None:
        """A round begins after a pause of the whole fleet."""
        for worker, away in list(self._away.items()):
            away.pauses_s += pause_s
            if worker in members:
                self._restart_s = away.pauses_s + (now - away.since_s) / len(members)
                del self._away[worker]
        self._controller.regroup(members)

    def out_of_memory(self, request: OutOfMemory) -> str:
        """Half of what did not fit is the most from now on; says so."""
        most = max(1, request.samples // 2)
        self._controller.limit(request.worker, most)
        reason = (
            f"{request.worker} has no memory for a pass of {request.samples} samples: {most} at most from "
            "now on, the step's samples are done again"
        )
        self._log.append(
            "decision", step=request.step, action="limit_pass", worker=request.worker, micro_batch=most,
            reason=reason, detail=request.error,
        )  # fmt: skip
        return reason

    def step_took(self, step: int, seconds: float) -> None:
        """All members have taken a step."""
        self._step_s = seconds
        effect = self._controller.step_took(seconds)
        if effect is None:
            return
        expected = f", {effect.predicted:.0%} expected" if effect.predicted is not None else ""
        self._log.append(
            "effect",
            step=step,
            of_step=effect.step,
            action=effect.what,
            before_s=round(effect.before_s, 5),
            after_s=round(effect.after_s, 5),
            predicted=effect.predicted,
            steps=effect.steps,
            reason=f"{effect.what}: a step takes {effect.ratio:.0%} of the time before{expected}",
        )

    def snapshot(self) -> bytes:
        """What must survive the coordinator."""
        return self._controller.snapshot()

    def restore(self, data: bytes) -> None:
        """Take over from a coordinator that died."""
        if data:
            self._controller.restore(data)

    # --- what it decides -----------------------------------------------------------------------

    def steer(self, now: float, step: int, batch: int, remaining_s: float) -> str:
        """Ask the policy, if it is time, before `step` is planned.

        Returns:
            Why the round has to end at its next boundary; empty where it need not.
        """
        left_s = remaining_s if remaining_s > 0 else math.inf
        facts = Facts(batch, restart_s=self._restart_s, remaining_s=left_s, room=self._room())
        decision = self._controller.decide(now, step, facts)
        if decision is None:
            return ""
        self._record(step, decision)
        for action in decision.actions:
            if isinstance(action, AddWorkers):
                self._add(now, action.count)
            elif isinstance(action, (Restart, RemoveWorker)):
                again = isinstance(action, Restart)
                what = "restarted" if again else "removed"
                self._leaving[action.worker] = Leave(f"{action.worker} is {what}: {decision.reason}", again)
        return "; ".join(leave.reason for leave in self._leaving.values())

    def told_to_go(self, worker: str, notice: str) -> str:
        """A worker's machine will be taken away: it leaves at the next boundary, and another process takes
        its place, elsewhere where there is an elsewhere. Says so, once."""
        if worker in self._leaving:
            return ""
        reason = f"{worker} hands over and leaves: {notice}"
        self._leaving[worker] = Leave(reason, again=True)
        return reason

    def leave(self, now: float, worker: str) -> Leave | None:
        """Whether this worker, which asks for a round, has to go; asked once."""
        leave = self._leaving.pop(worker, None)
        if leave is not None:
            self._forget(worker)
            if leave.again:
                self._away[worker] = _Away(now)
        return leave

    def departs(self, worker: str) -> str:
        """Why this worker has to go at its next boundary; empty where it stays."""
        return self._leaving[worker].reason if worker in self._leaving else ""

    def stay(self) -> None:
        """Nobody has to go after all."""
        self._leaving.clear()

    @property
    def leaving(self) -> bool:
        """Whether somebody has to go at the next boundary."""
        return bool(self._leaving)

    def parts(self, batch: int) -> dict[str, int]:
        """Samples of each member."""
        return split(batch, self._controller.shares)

    def parts_of_window(self, now: float, window_s: float, batch: int, todo: int) -> dict[str, int]:
        """Samples of each member for a stretch of so many seconds: somewhat more than it is expected to do,
        since what is left comes back; an even part of `batch` for who was not seen yet."""
        shares = self._controller.shares
        views = self._monitor.view(now, tuple(shares))
        wanted = {
            name: math.ceil(SPARE * window_s * view.short.samples_per_s) or -(-batch // len(shares))
            for name, view in views.items()
        }
        total = sum(wanted.values())
        return wanted if total <= todo else split(todo, {name: n / total for name, n in wanted.items()})

    def size_of(self, parts: dict[str, int]) -> StepSize:
        """What all orders of a step with these parts have in common."""
        batch = sum(parts.values())
        size = self._controller.pass_of
        return StepSize(batch, max(-(-samples // size(name, batch)) for name, samples in parts.items()))

    def order(
        self,
        step: int,
        worker: str,
        ranges: tuple[tuple[int, int], ...],
        whole: StepSize,
        progress: float,
        window_s: float = 0.0,
    ) -> Order:
        """What a member does in this step."""
        return Order(
            step,
            ranges,
            whole.batch,
            progress,
            micro_batch=self._controller.pass_of(worker, whole.batch),
            passes=whole.passes,
            lr_factor=self._controller.lr_factor,
            backups=self.backups[0],
            tell=bool(self.backups[0]) or (self._policy not in STATIC and self._step_s >= LONG_S),
            window_s=window_s,
        )

    @property
    def backups(self) -> tuple[int, float]:
        """Workers that a step goes on without, and the grace that they get."""
        return self._controller.backups

    def speed(self, now: float, worker: str) -> dict[str, float | str]:
        """One worker's batch time (s) and samples per second over the short window."""
        view = self._monitor.view(now, (worker,))[worker]
        return {
            "batch_time_s": view.short.batch_time_s,
            "samples_per_s": view.short.samples_per_s,
            "samples": float(view.last.samples) if view.last else 0.0,
        }

    def _forget(self, worker: str) -> None:
        self._monitor.forget(worker)
        self._warm.discard(worker)

    def _record(self, step: int, decision: Decision) -> None:
        actions = [in_record(action) for action in decision.actions]
        self._log.append(
            "decision",
            step=step,
            action=", ".join(str(action["action"]) for action in actions) or "none",
            actions=actions,
            reason=decision.reason,
            shares={worker: round(share, 4) for worker, share in self._controller.shares.items()},
            predicted=dict(decision.predicted),
            policy=self._policy,
        )
