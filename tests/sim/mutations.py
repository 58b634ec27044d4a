"""Parts broken on purpose, one at a time: the simulator has to find each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoestring.data.ledger import Ledger
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.coordinator import Coordinator
from shoestring.fleet.membership import Membership
from shoestring.fleet.rounds import RoundState
from shoestring.fleet.stepping import Stepper
from shoestring.sim import host

Mutation = Callable[[pytest.MonkeyPatch], None]


def settles_at_the_first_report(patch: pytest.MonkeyPatch) -> None:
    """A step counts as done when its first member says so."""
    patch.setattr(RoundState, "confirmed", lambda self: max(self.applied.values(), default=-1))


def plans_on_late_copies(patch: pytest.MonkeyPatch) -> None:
    """A late copy of `Next` plans a step that is long over, and its samples count as done."""
    patch.setattr(RoundState, "is_echo", lambda self, name, step: False)


def listens_to_the_dead(patch: pytest.MonkeyPatch) -> None:
    """Messages of a process that was replaced are believed."""
    patch.setattr(Membership, "current", lambda self, name, incarnation: name in self._members)


def rolls_back_without_the_ledger(patch: pytest.MonkeyPatch) -> None:
    """The model goes back to the checkpoint, the ledger stays."""
    patch.setattr(DurableLedger, "replace", lambda self, snapshot: None)


def starts_again_without_the_ledger(patch: pytest.MonkeyPatch) -> None:
    """The model starts from the seed, the ledger stays."""
    patch.setattr(DurableLedger, "reset", lambda self: None)


def keeps_leases_of_lost_steps(patch: pytest.MonkeyPatch) -> None:
    """What was leased for a step that nobody applied is not given back."""
    patch.setattr(Ledger, "release_tags", lambda self, now, above: 0)


def gives_back_one_step_too_many(patch: pytest.MonkeyPatch) -> None:
    """Samples of a step that a survivor has applied go back to todo."""
    right = Ledger.release_tags
    patch.setattr(Ledger, "release_tags", lambda self, now, above: right(self, now, above - 1))


def forgets_failed_samples(patch: pytest.MonkeyPatch) -> None:
    """`Failed` is acknowledged, but the samples stay in the lease and count as used."""
    patch.setattr(Stepper, "fail_samples", lambda self, now, request: None)


def expires_leases_of_steps(patch: pytest.MonkeyPatch) -> None:
    """The lease of a slow step times out, and its samples are used again."""

    def expire(self: Ledger, now: float) -> list[Any]:
        lost = [lease for lease in self.leases() if lease.expires_s <= now]
        for lease in lost:
            self.release(lease.lease_id)
        return lost

    patch.setattr(Ledger, "expire", expire)


def saves_work_in_flight_as_done(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint's ledger is one step behind its model."""
    right = Stepper._commit

    def commit(self: Stepper, now: float, round_: RoundState, saving: Any, kept: Any) -> None:
        count = self._ledger.counts().todo
        if count:
            self._ledger.lease(now, "nobody", 1, tag=saving.step + 1)
            self._ledger.complete_tags(now, saving.step + 1)
        right(self, now, round_, saving, kept)

    patch.setattr(Stepper, "_commit", commit)


def commits_half_a_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """A checkpoint is committed when its first part is there."""
    right = Stepper.saved

    def saved(self: Stepper, now: float, round_: RoundState, request: m.Saved, kept: Any) -> m.Reply:
        if round_.saving is not None and not request.error:
            for name in round_.members:
                round_.saving.parts.setdefault(name, request)
        return right(self, now, round_, request, kept)

    patch.setattr(Stepper, "saved", saved)


def forms_rounds_beside_the_living(patch: pytest.MonkeyPatch) -> None:
    """A round forms though a member of the one before may still hold newer state."""
    right = Membership.try_form

    def try_form(self: Membership, now: float, confirmed_step: int) -> Any:
        for member in self._members.values():
            if member.state == "active":
                member.state = "starting"
        return right(self, now, confirmed_step)

    patch.setattr(Membership, "try_form", try_form)


def forgets_what_it_returned(patch: pytest.MonkeyPatch) -> None:
    """The store misses a delta: ranges that went back to todo."""
    right = DurableLedger.commit

    def commit(self: DurableLedger) -> bool:
        self._returned.touched.clear()
        return right(self)

    patch.setattr(DurableLedger, "commit", commit)


def trusts_the_first_flag(patch: pytest.MonkeyPatch) -> None:
    """A resumed run's second coordinator waits for workers of the run before (found by this simulator)."""
    patch.setattr(host.Supervisor, "_start_coordinator", lambda self: self._world.host.start(resumed=False))


def never_gives_up_waiting(patch: pytest.MonkeyPatch) -> None:
    """Hung workers are not looked for."""
    patch.setattr(Membership, "find_hung", lambda self, now: {})


def stops_before_all_have_reported(patch: pytest.MonkeyPatch) -> None:
    """The run ends while a sample that failed is still to be tried again."""

    def end_reason(self: Stepper, *_: Any) -> str:
        return "done" if self._ledger.counts().doing == 0 else ""

    patch.setattr(Stepper, "_end_reason", end_reason)


def lets_one_member_stop(patch: pytest.MonkeyPatch) -> None:
    """A fault in the coordinator's own code."""
    right = Coordinator._saved

    def saved(self: Coordinator, now: float, request: m.Saved) -> m.Reply:
        if request.step == 3:
            raise KeyError(request.step)
        return right(self, now, request)

    patch.setattr(Coordinator, "_saved", saved)


MUTATIONS: tuple[Mutation, ...] = (
    settles_at_the_first_report,
    plans_on_late_copies,
    listens_to_the_dead,
    rolls_back_without_the_ledger,
    starts_again_without_the_ledger,
    keeps_leases_of_lost_steps,
    gives_back_one_step_too_many,
    forgets_failed_samples,
    expires_leases_of_steps,
    saves_work_in_flight_as_done,
    commits_half_a_checkpoint,
    forms_rounds_beside_the_living,
    forgets_what_it_returned,
    trusts_the_first_flag,
    never_gives_up_waiting,
    stops_before_all_have_reported,
    lets_one_member_stop,
)
