"""The simulation of one seed: an event queue on a virtual clock, and everything in it (source: ours)."""

from __future__ import annotations

import heapq
import random
import traceback
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from shoestring.base.errors import CheckpointError
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.checkpoints import Manifest
from shoestring.fleet.coordinator import Coordinator
from shoestring.sim.checks import Checks, Violation
from shoestring.sim.faults import Faults
from shoestring.sim.group import Group
from shoestring.sim.host import Host, Supervisor
from shoestring.sim.network import Network
from shoestring.sim.scenario import SimOptions, draw
from shoestring.sim.storage import Disk, MemoryKeeper, read_manifest
from shoestring.sim.store import MemoryLedger, SqliteLedger, Tables
from shoestring.sim.workers import Worker

TAIL = 150
RESUME_S = 0.2


@dataclass(frozen=True)
class SeedResult:
    """What became of one seed.

    Attributes:
        seen: what happened how often.
        trace: checksum of all events; equal seeds give equal traces.
        virtual_s: virtual seconds until the end.
        violation: the broken promise, or empty.
        tail: the last events before it.
    """

    seed: int
    seen: dict[str, int]
    trace: int
    virtual_s: float
    violation: str
    tail: tuple[str, ...]


class World:
    """One seed's cluster.

    Args:
        seed: decides everything.
        options: bounds.
    """

    def __init__(self, seed: int, options: SimOptions) -> None:
        self.rng = random.Random(seed)
        self.options = options
        self.scenario = draw(self.rng)
        self.positions = self.scenario.ledger.samples * self.scenario.ledger.epochs
        self.now = 0.0
        self.over = False
        self.seen: Counter[str] = Counter()
        self.disk = Disk()
        self.tables = Tables()
        self._folder = TemporaryDirectory() if options.store == "sqlite" else None
        self.workers: list[Worker] = []
        self._seed = seed
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._events = 0
        self._trace = 0
        self._tail: deque[tuple[float, str, str, object]] = deque(maxlen=TAIL)
        self._groups: dict[int, Group] = {}
        self._flaky = dict(self.scenario.flaky)
        self._lives = 0
        self.network = Network(self)
        self.checks = Checks(self)
        self.host = Host(self)
        self.supervisor = Supervisor(self, 0)
        Faults(self)
        self.after(0.0, self.host.start, False)

    def run(self) -> SeedResult:
        """Let time pass until the run is over or a promise is broken."""
        violation = ""
        try:
            while not self.over:
                self.now, _, do, args = heapq.heappop(self._queue)
                self._events += 1
                do(*args)
                if self.now > self.options.limit_s:
                    self.checks.fail(f"no end after {self.now:.0f} virtual seconds: no progress")
        except Violation as broken:
            violation = str(broken)
        except Exception as error:  # noqa: BLE001  whatever a part throws is a finding of this seed
            where = traceback.extract_tb(error.__traceback__)[-1]
            violation = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        finally:
            if self._folder is not None:
                self._folder.cleanup()
        self.seen["events"] = self._events
        tail = tuple(f"{at:9.4f} {kind:9s} {who:14s} {what}" for at, kind, who, what in self._tail)
        shown = tail if violation else ()
        return SeedResult(self._seed, dict(self.seen), self._trace, self.now, violation, shown)

    # --- time and trace ------------------------------------------------------------------------

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        """Call `do(*args)` after `delay_s` virtual seconds."""
        self._events += 1
        heapq.heappush(self._queue, (self.now + delay_s, self._events, do, args))

    def note(self, kind: str, who: str, what: object) -> None:
        """Take an event into the trace."""
        self._trace = zlib.crc32(f"{self.now!r} {kind} {who} {what}".encode(), self._trace)
        self._tail.append((self.now, kind, who, what))

    def heard(self, who: str, data: bytes, request: m.Request, reply: m.Reply) -> None:
        """Take a request and its answer into the trace."""
        self._trace = zlib.crc32(data, zlib.crc32(m.encode(reply), self._trace))
        self._tail.append((self.now, "message", who, (request, reply)))
        self.seen["messages"] += 1

    def append(self, kind: str, **fields: Any) -> object:
        """The coordinator's log."""
        self._tail.append((self.now, f"log {kind}", "", fields))
        self.seen[f"logged_{kind}"] += 1
        if kind == "decision" and "action" in fields and fields["action"] == "restore":
            self.seen["rollbacks"] += 1
            self.checks.rolled_back(int(fields["step"]))
        for action in fields["actions"] if "actions" in fields else ():
            self.seen[f"action_{action['action']}"] += 1
        return None

    # --- what the parts need -------------------------------------------------------------------

    def open_ledger(self) -> DurableLedger:
        """The ledger as the store has it."""
        if self._folder is None:
            return MemoryLedger.open_on(self.tables, self.scenario.ledger)
        return SqliteLedger.open_in(Path(self._folder.name), self.tables, self.scenario.ledger)

    def make_coordinator(self, ledger: DurableLedger, resumed: bool) -> Coordinator:
        """A coordinator on that ledger."""
        keeper = CheckedKeeper(self, self.disk, self.scenario.fleet.checkpoint.keep)
        return Coordinator(self.scenario.fleet, ledger, keeper, self, self.host.clock_s, resumed)

    def spawn(self, name: str, incarnation: int) -> Worker:
        """Start a worker process."""
        worker = Worker(self, name, incarnation)
        self.workers = [other for other in self.workers if other.alive] + [worker]
        self.seen["spawns"] += 1
        self.note("spawn", f"{name}.{incarnation}", "")
        return worker

    def group_of(self, round_: m.Round) -> Group:
        """The connections of this round."""
        if round_.round_id not in self._groups:
            self._groups[round_.round_id] = Group(self, round_.round_id, round_.members)
        return self._groups[round_.round_id]

    def sample_fails(self, position: int) -> bool:
        """Whether reading this position fails now."""
        if position in self.scenario.poison:
            return True
        if position in self._flaky and self._flaky[position] > 0:
            self._flaky[position] -= 1
            return True
        return False

    def read_checkpoint(self, folder: str) -> bytes:
        """The model in a committed checkpoint.

        Raises:
            CheckpointError: it is gone or damaged.
        """
        if folder not in self.disk.folders:
            raise CheckpointError(f"{folder} is gone", "restore another one")
        files = self.disk.folders[folder]
        manifest, reason = read_manifest(files)
        if manifest is None:
            raise CheckpointError(f"{folder}: {reason}", "restore another one")
        return b"".join(files[name] for name in sorted(manifest.files))

    # --- the end -------------------------------------------------------------------------------

    def blackout(self, why: str) -> None:
        """Everything dies at once; somebody resumes the run later."""
        self.note("blackout", "", why)
        self.supervisor.gone = True
        for worker in self.workers:
            worker.kill(-9)
        self.host.die()
        self._lives += 1
        self.after(RESUME_S, self._resume, self._lives)

    def ended(self, outcome: str, error: str) -> None:
        """The supervisor was told that the run is over."""
        self.note("outcome", outcome, error)
        self.seen[f"outcome_{outcome}"] += 1
        if outcome == "finished":
            self._check_end()
            self.over = True
            return
        if "checkpoints are damaged" in error:
            self._start_again()
        elif outcome == "failed" and not any(text in error for text in ("final checkpoint", "given up")):
            self.checks.fail(f"the run failed: {error}")
        self.blackout(f"the run ended: {outcome}")

    def _resume(self, life: int) -> None:
        if life == self._lives:
            self.supervisor = Supervisor(self, life)
            self.host.start(resumed=True)

    def _start_again(self) -> None:
        committed = self.disk.committed()
        if any(read_manifest(self.disk.folders[name])[0] is not None for name in committed):
            self.checks.fail("the run was given up for damaged checkpoints, though one of them is intact")
        self.disk.folders.clear()

    def _check_end(self) -> None:
        newest = MemoryKeeper(self.disk, 1).newest()
        ledger = self.open_ledger()
        if newest.damaged:
            self.seen["damaged_after_the_end"] += 1
            return
        if newest.manifest is None:
            self.checks.fail("the run is over without a checkpoint")
            return
        self.checks.finished(ledger, self.read_checkpoint(newest.path))


class CheckedKeeper(MemoryKeeper):
    """Compares each checkpoint with its ledger when it is committed."""

    def __init__(self, world: World, disk: Disk, keep: int) -> None:
        super().__init__(disk, keep)
        self._world = world

    def commit(self, manifest: Manifest) -> int:
        """Commit, then compare.

        Raises:
            CheckpointError: it could not be committed.
        """
        size_bytes = super().commit(manifest)
        found = self.newest().manifest
        if found is None or found.step != manifest.step:
            self._world.checks.fail(
                f"checkpoint {manifest.step} is committed, but a restore would not take it"
            )
        model = self._world.read_checkpoint(f"step-{manifest.step:08d}")
        self._world.checks.committed(manifest, model)
        return size_bytes
