"""One round: a fixed set of workers that step together, and what each has said so far."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from shoestring.fleet.messages import Held, Order, Round, Saved, StepReport
from shoestring.fleet.rendezvous import Table


@dataclass
class StepPlan:
    """One global step: the order of each member; what was leased, and when."""

    step: int
    orders: dict[str, Order]
    samples: dict[str, int]
    at_s: float


@dataclass
class Guest:
    """A worker that computes for the members of a round, which hold the parameters.

    Attributes:
        order: the one given last, whose push is in no update yet; None: none is open.
        given: whether it has been asked for; from then on it stays as it is.
        lease_id: of its samples.
        report: of it, once its push is with all servers.
        pushed: its newest push that is in an update (-1: none).
        clock: its pushes so far; a newcomer begins with the least of the others'.
        told: the newest update that it was told of.
    """

    order: Order | None = None
    given: bool = False
    lease_id: int = -1
    samples: int = 0
    report: StepReport | None = None
    pushed: int = -1
    clock: int = 0
    told: int = 0


@dataclass
class Saving:
    """A checkpoint in the making at the boundary after `step`; `ledger`: its snapshot of then, where work
    goes on meanwhile."""

    step: int
    directory: str
    reason: str
    began_s: float
    parts: dict[str, Saved] = field(default_factory=dict)
    ledger: bytes = b""


@dataclass
class RoundState:
    """What the coordinator knows of the round in progress.

    Every decision about the boundary after a step is made once, when the first member asks, so
    that all members get the same answer.
    """

    round_id: int
    members: tuple[str, ...]
    step: int
    source_rank: int
    checkpoint: str
    began_s: float
    held: tuple[Held | None, ...] = ()
    applied: dict[str, int] = field(default_factory=dict)
    standing: Counter[int] = field(default_factory=Counter)  # step -> members that have applied it last
    plans: dict[int, StepPlan] = field(default_factory=dict)
    reports: dict[int, dict[str, StepReport]] = field(default_factory=dict)
    ready: dict[int, dict[str, float]] = field(default_factory=dict)
    gave_back: dict[int, dict[str, int]] = field(default_factory=dict)
    saving: Saving | None = None
    saved: dict[int, bool] = field(default_factory=dict)
    closing: str = ""
    table: Table = field(default_factory=Table)
    guests: dict[str, Guest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._members = frozenset(self.members)

    def has(self, name: str) -> bool:
        """Whether this worker takes part."""
        return name in self._members or name in self.guests

    def message(self, name: str) -> Round:
        """What the member `name` is told about this round."""
        return Round(
            self.round_id,
            self.members.index(name),
            self.members,
            self.step,
            self.source_rank,
            self.checkpoint,
            self.held,
        )

    def inherit(self, broken: RoundState, confirmed: int) -> None:
        """Steps that this round starts from, and that not all members of the broken one have confirmed: what
        some of them have told belongs into the record."""
        for step in range(confirmed + 1, self.step + 1):
            if step in broken.plans and step in broken.reports:
                self.plans[step], self.reports[step] = broken.plans[step], broken.reports[step]

    def is_echo(self, name: str, step: int) -> bool:
        """Whether a `Next` for `step` is a late copy: this member was heard at a later step already."""
        return step < max(self.step, self.applied[name] if name in self.applied else -1)

    def newest_step(self) -> int:
        """The newest step that a member of this round can have applied."""
        return max(self.plans, default=self.step)

    def note_applied(self, name: str, step: int, report: StepReport | None) -> None:
        """A member has applied `step`; repeated and late messages change nothing."""
        before = self.applied[name] if name in self.applied else None
        if before is None or step > before:
            self.applied[name] = max(step, -1)
            self.standing[self.applied[name]] += 1
            if before is not None:
                self.standing[before] -= 1
                if not self.standing[before]:
                    del self.standing[before]
        if report is not None:
            self.reports.setdefault(step, {}).setdefault(name, report)

    def was_ready(self, name: str, step: int) -> bool:
        """Whether a member has said that its part of a step is computed."""
        return step in self.ready and name in self.ready[step]

    def has_told(self, name: str, step: int) -> bool:
        """Whether a member has told its work of a step, before the exchange or after it."""
        return self.was_ready(name, step) or (step in self.reports and name in self.reports[step])

    def confirmed(self) -> int:
        """The newest step that every member has applied; -1 before all were heard."""
        return min(self.standing) if len(self.applied) == len(self.members) else -1

    def drop_before(self, step: int) -> None:
        """Forget plans and reports of steps that are settled."""
        for table in (self.plans, self.reports, self.ready, self.gave_back):
            for old in [s for s in table if s < step]:
                del table[old]
