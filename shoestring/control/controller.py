"""The controller: every interval, a policy turns what the monitor sees into actions, with a reason (source:
AntDT; effects, and what happens to a policy that fails, are ours)."""

from __future__ import annotations

import contextlib
import importlib
import math
import statistics
import sys
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.control.decisions import (
    AddWorkers,
    AdjustAccumulation,
    AdjustBatch,
    AdjustLr,
    ControlState,
    Decision,
    Policy,
    PolicyOptions,
    RemoveWorker,
    Restart,
    Restarted,
    UseBackups,
)
from shoestring.control.monitor import Monitor
from shoestring.control.policies import POLICIES

STEPS = 20
"""Of which the median says how long a step takes, before an action and after it."""
TELLING_STEPS = 5
"""An action's effect is told once so many steps were taken under it."""
SUM_SLACK = 1e-6


class ControlConfig(Config):
    """When to decide, from how much, and by which policy.

    Attributes:
        policy: `nd`, `dd`, `nd-backup`, `restart`, `none`, `fixed`, `lb-bsp`, `backup`, or
            `my_module:my_function` for your own.
        interval_s: between decisions.
        short_window_s, long_window_s: lengths of the monitor's windows.
        options: what policies go by.
        whole_state: as in ControlState; a run fills it in from its plan.
    """

    policy: str = "nd"
    interval_s: float = 2.0
    short_window_s: float = Field(default=15.0, gt=0.0)
    long_window_s: float = Field(default=300.0, gt=0.0)
    options: PolicyOptions = PolicyOptions()
    whole_state: bool = True


@dataclass(frozen=True)
class Facts:
    """What the controller has to be told with each question.

    Attributes: as in ControlState.
    """

    batch: int
    restart_s: float = 0.0
    remaining_s: float = math.inf
    room: int = 0


@dataclass(frozen=True)
class Effect:
    """What came of a decision: seconds of a step before and after, as medians.

    Attributes:
        step: before which it came into force.
        predicted: ratio that the policy expected; None: it said nothing.
    """

    step: int
    what: str
    before_s: float
    after_s: float
    steps: int
    predicted: float | None

    @property
    def ratio(self) -> float:
        """Seconds of a step after to before."""
        return self.after_s / self.before_s


class _Kept(msgspec.Struct, array_like=True):
    shares: dict[str, float]
    micro_batch: dict[str, int]
    limits: dict[str, int]
    lr_factor: float
    restarts: dict[str, list[tuple[float, float]]]
    backups: tuple[int, float] = (0, 0.0)


def policy_named(name: str) -> Policy:
    """A shipped policy, or the user's at `module:function`.

    Raises:
        ConfigError: there is none.
    """
    if name in POLICIES:
        return POLICIES[name]
    module, _, function = name.partition(":")
    if not function:
        raise ConfigError(
            f"there is no policy {name!r}",
            f"take one of {', '.join(POLICIES)}, or name your own function as my_module:my_function",
        )
    try:
        with _beside():
            found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the policy {name!r} cannot be loaded: {error}",
            "put its module where Python finds it (PYTHONPATH, or the folder you start in); check its name",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"the policy {name!r} is no function", "see docs/design/control.md for what one takes"
        )
    policy: Policy = found
    return policy


@contextlib.contextmanager
def _beside() -> Iterator[None]:
    """Modules in the folder that the program was started in are found too, after all others."""
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


class Controller:
    """Holds what is in force and asks the policy when the interval is over.

    Attributes:
        usual: worker -> samples that it takes in one pass where nothing else is decided.
        micro_batch: worker -> samples of a pass, where that was decided.
        limits: worker -> the most samples of a pass that its memory holds, where that was learnt.
        lr_factor: on the schedule's learning rate.
        backups: workers that a step goes on without, and the grace that they get (see UseBackups).

    Raises:
        ConfigError: there is no such policy.
    """

    def __init__(self, config: ControlConfig, monitor: Monitor) -> None:
        self._config = config
        self._policy = policy_named(config.policy)
        self._monitor = monitor
        self._shares: dict[str, float] = {}
        self._next_s: float | None = None
        self._eager = True
        self._restarts: dict[str, tuple[Restarted, ...]] = {}
        self._took_s: deque[float] = deque(maxlen=STEPS)
        self._told: Effect | None = None
        self.usual: dict[str, int] = {}
        self.micro_batch: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.lr_factor = 1.0
        self.backups = (0, 0.0)

    @property
    def shares(self) -> dict[str, float]:
        """Part of the global batch per worker; sums to 1."""
        return dict(self._shares)

    def most_of(self, worker: str, batch: int) -> int:
        """The most samples that this worker takes in one pass, of a global batch of so many."""
        usual = self.usual[worker] if self.usual.get(worker) else max(1, batch)
        return min(usual, self.limits[worker]) if worker in self.limits else usual

    def pass_of(self, worker: str, batch: int) -> int:
        """Samples of a pass of this worker."""
        most = self.most_of(worker, batch)
        return min(most, self.micro_batch[worker]) if worker in self.micro_batch else most

    def regroup(self, members: tuple[str, ...]) -> None:
        """A new round: those who stay keep their proportions, newcomers get the mean."""
        known = {w: self._shares[w] for w in members if w in self._shares}
        mean = sum(known.values()) / len(known) if known else 1.0
        raw = {w: known[w] if w in known else mean for w in members}
        if not sum(raw.values()) > 0:  # all that is left are workers that had nothing to do
            raw = dict.fromkeys(members, 1.0)
        total = sum(raw.values())
        self._shares = {w: value / total for w, value in raw.items()}
        if self._took_s:
            self._took_s.clear()  # steps of other members do not compare
        self._told = None
        self._eager = True

    def decide(self, now: float, step: int, facts: Facts) -> Decision | None:
        """A decision when one is due, in force from `step` on; None between intervals. In a new round one is
        due as soon as all were seen often enough.

        A policy that fails, or decides what cannot be, changes nothing: training goes on, and the reason says
        what went wrong.
        """
        if self._next_s is None:
            self._next_s = now + self._config.interval_s
        if not self._shares or (now < self._next_s and not self._all_seen(now)):
            return None
        self._next_s = now + self._config.interval_s
        state = self.state(now, facts)
        try:
            decision = self._policy(now, state, self._config.options)
            problem = wrong(decision, state)
        except Exception:  # noqa: BLE001  a user's policy may raise anything, and training must not end by it
            problem = traceback.format_exc(limit=-3).strip()
        if problem:
            return Decision((), f"the policy `{self._config.policy}` failed, nothing is changed: {problem}")
        self._apply(now, step, decision, state)
        return decision

    def hurry(self) -> None:
        """A worker's speed has changed: decide before the next step."""
        self._next_s = -math.inf if self._next_s is not None else None

    def _all_seen(self, now: float) -> bool:
        """Whether all were seen often enough for the first time in this round."""
        if not self._eager:
            return False
        busy = tuple(worker for worker, share in self._shares.items() if share > 0)  # others report nothing
        views = self._monitor.view(now, busy).values()
        self._eager = any(view.short.reports < self._config.options.min_reports for view in views)
        return not self._eager

    def state(self, now: float, facts: Facts) -> ControlState:
        """What a policy is shown."""
        members = tuple(self._shares)
        return ControlState(
            workers=self._monitor.view(now, members),
            shares=self.shares,
            micro_batch={w: self.pass_of(w, facts.batch) for w in members},
            most={w: self.most_of(w, facts.batch) for w in members},
            batch=facts.batch,
            lr_factor=self.lr_factor,
            backups=self.backups,
            restarts=dict(self._restarts),
            restart_s=facts.restart_s,
            remaining_s=facts.remaining_s,
            room=facts.room,
            whole_state=self._config.whole_state,
        )

    def limit(self, worker: str, samples: int) -> None:
        """This worker's memory does not hold more than so many samples of a pass."""
        self.limits[worker] = min(samples, self.limits[worker]) if worker in self.limits else samples

    def snapshot(self) -> bytes:
        """What is in force and what was learnt, for a controller that takes over."""
        restarts = {w: [(one.at_s, one.samples_per_s) for one in many] for w, many in self._restarts.items()}
        return msgspec.msgpack.encode(
            _Kept(self._shares, self.micro_batch, self.limits, self.lr_factor, restarts, self.backups)
        )

    def restore(self, data: bytes) -> None:
        """Take over; the monitor begins anew, by what workers report from now on."""
        kept = msgspec.msgpack.decode(data, type=_Kept)
        self._shares, self.micro_batch, self.limits = kept.shares, kept.micro_batch, kept.limits
        self.lr_factor, self.backups = kept.lr_factor, kept.backups
        self._restarts = {w: tuple(Restarted(*one) for one in many) for w, many in kept.restarts.items()}

    def step_took(self, seconds: float) -> Effect | None:
        """All have taken a step; an effect where enough were taken since the last decision that changed
        anything."""
        self._took_s.append(seconds)
        told = self._told
        if told is None or len(self._took_s) < TELLING_STEPS:
            return None
        self._told = None
        return replace(told, after_s=statistics.median(self._took_s), steps=len(self._took_s))

    def _apply(self, now: float, step: int, decision: Decision, state: ControlState) -> None:
        for action in decision.actions:
            if isinstance(action, AdjustBatch):
                self._shares = dict(action.shares)
            elif isinstance(action, AdjustAccumulation):
                self.micro_batch |= action.micro_batch
            elif isinstance(action, AdjustLr):
                self.lr_factor = action.factor
            elif isinstance(action, UseBackups):
                self.backups = (action.count, action.grace_share)
            elif isinstance(action, Restart):
                one = Restarted(now, state.workers[action.worker].long.samples_per_s)
                before = self._restarts[action.worker] if action.worker in self._restarts else ()
                self._restarts[action.worker] = (*before, one)
        if not decision.actions:
            return
        predicted = decision.predicted["step_time_ratio"] if "step_time_ratio" in decision.predicted else None
        what = ", ".join(action.kind for action in decision.actions)
        before_s = statistics.median(self._took_s) if len(self._took_s) >= TELLING_STEPS else 0.0
        self._told = Effect(step, what, before_s, 0.0, 0, predicted) if before_s else None
        self._took_s.clear()


def wrong(decision: Decision, state: ControlState) -> str:
    """Why a decision cannot be carried out; empty where it can."""
    if not isinstance(decision, Decision):
        return f"it gave a {type(decision).__name__}, not a Decision"
    for action in decision.actions:
        problem = _wrong(action, state)
        if problem:
            return f"{problem} ({action})"
    if sum(isinstance(action, RemoveWorker) for action in decision.actions) >= len(state.workers):
        return "nobody would be left"
    return ""


def _wrong(action: object, state: ControlState) -> str:
    members = set(state.workers)
    if isinstance(action, AdjustBatch):
        if set(action.shares) != members:
            return "shares for others than the workers that there are"
        numbers = list(action.shares.values())
        if not all(math.isfinite(n) and n >= 0 for n in numbers) or abs(sum(numbers) - 1.0) > SUM_SLACK:
            return "shares that do not sum to 1"
    elif isinstance(action, AdjustAccumulation):
        if not set(action.micro_batch) <= members:
            return "passes of workers that are not there"
        if not all(isinstance(n, int) and n >= 1 for n in action.micro_batch.values()):
            return "passes of less than a sample"
    elif isinstance(action, AdjustLr):
        if not (math.isfinite(action.factor) and action.factor > 0):
            return "a learning rate that makes no sense"
    elif isinstance(action, UseBackups):
        if action.count and not state.whole_state:
            return "backup workers where no worker holds all of the state, so that a step needs each of them"
        if not (0 <= action.count < len(members) and 0 <= action.grace_share < math.inf):
            return f"{action.count} backups of {len(members)} workers, with a grace of {action.grace_share:g}"
    elif isinstance(action, (Restart, RemoveWorker)):
        if action.worker not in members:
            return "a worker that is not there"
    elif isinstance(action, AddWorkers):
        if not 1 <= action.count <= state.room:
            return f"{action.count} workers where there is room for {state.room}"
    else:
        return f"an unknown action: {type(action).__name__}"
    return ""
