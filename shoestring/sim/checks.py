"""The promises, checked on every state that can survive (source: ours).

For each worker whose state belongs to the round in progress, and for each committed checkpoint:
the samples that are in the model are exactly those that the ledger counts, or will count, for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoestring.base.errors import LedgerError
from shoestring.data.ledger import Ledger
from shoestring.fleet.checkpoints import Manifest

if TYPE_CHECKING:
    from shoestring.sim.workers import Worker
    from shoestring.sim.world import World


class Violation(Exception):
    """A promise is broken; the text says which one."""


class Checks:
    """Compares models with the ledger."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._standing = (-1, -1)

    def fail(self, text: str) -> None:
        """Stop the simulation."""
        raise Violation(text)

    def adopted(self, worker: Worker) -> None:
        """A worker has taken over the state of its round."""
        self._model(worker, "took over a state")

    def applied(self, worker: Worker) -> None:
        """A worker has applied a step."""
        self._model(worker, "applied a step")

    def flushed(self) -> None:
        """The coordinator's changes are durable: look at everything when a step or a round has changed."""
        coordinator = self._world.host.coordinator
        if coordinator is None or coordinator.standing == self._standing:
            return
        self._standing = coordinator.standing
        try:
            if self._world.host.ledger is not None:
                self._world.host.ledger.check()
        except LedgerError as error:
            self.fail(f"the ledger contradicts itself: {error.what}")
        for worker in self._world.workers:
            if worker.alive and worker.settled:
                self._model(worker, "is a member")

    def committed(self, manifest: Manifest, parts: bytes) -> None:
        """A checkpoint counts from now on: `parts` is its model."""
        ledger = Ledger.restore(self._world.scenario.ledger, manifest.ledger)
        wanted = expected(ledger, self._world.positions, manifest.step)
        self._compare(parts, wanted, f"checkpoint {manifest.step}")
        self._world.seen["checkpoints"] += 1

    def rolled_back(self, step: int) -> None:
        """The fleet goes back to a checkpoint: nobody may hold newer state that could have been used."""
        for worker in self._world.workers:
            if worker.able and worker.settled and worker.step > step:
                who = f"{worker.name}.{worker.incarnation}"
                self.fail(f"a roll-back to step {step}, though {who} is at step {worker.step}")

    def finished(self, ledger: Ledger, model: bytes) -> None:
        """The run says that it is over: every sample once, or on the dead list."""
        world = self._world
        dead = {letter.position for letter in ledger.dead_letters()}
        self._compare(model, expected(ledger, world.positions, -1), "the final model")
        bad = dead - world.scenario.poison - set(world.scenario.flaky)
        if bad:
            self.fail(f"positions {sorted(bad)} are dead, though nothing is wrong with them")
        if world.scenario.fleet.pace.steps:
            return
        missing = [p for p in range(world.positions) if not model[p] and p not in dead]
        if missing:
            self.fail(f"the run is over, but positions {missing[:10]} were neither used nor given up")

    def _model(self, worker: Worker, what: str) -> None:
        host = self._world.host
        if host.coordinator is None or host.ledger is None or worker.round_ is None:
            return
        if host.coordinator.standing[0] != worker.round_.round_id:
            return
        self._world.seen["models_compared"] += 1
        wanted = expected(host.ledger, self._world.positions, worker.step)
        who = f"{worker.name}.{worker.incarnation}"
        self._compare(worker.tensors, wanted, f"{who} {what} at step {worker.step}")

    def _compare(self, model: bytes, wanted: bytes, who: str) -> None:
        if model == wanted:
            return
        if len(model) != len(wanted):
            self.fail(f"{who}: a model of {len(model)} positions instead of {len(wanted)}")
        wrong = [p for p in range(self._world.positions) if model[p] != wanted[p]]
        shown = ", ".join(f"position {p}: used {model[p]}x, counted {wanted[p]}x" for p in wrong[:5])
        self.fail(f"{who}: the model and the ledger differ in {len(wrong)} positions ({shown})")


def expected(ledger: Ledger, positions: int, step: int) -> bytes:
    """The model that the ledger stands for after `step`: a byte a position, 1 where it is used.

    Done positions are used, and so are those that are leased for a step up to `step`.
    """
    state = ledger.snapshot()
    model = bytearray(b"\1" * state.frontier + bytes(positions - state.frontier))
    later = [r for lease in state.leases if not 0 < lease.tag <= step for r in lease.ranges]
    for start, stop in [*state.returned, *later]:
        model[start:stop] = bytes(stop - start)
    for letter in state.letters:
        if letter.dead:
            model[letter.position] = 0
    return bytes(model)
