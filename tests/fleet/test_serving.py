"""The coordinator of parameter servers, driven by seeded chance: servers and workers of a few lines, whose
state is which samples are in it."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from shoestring.data.ledger import LedgerSpec
from shoestring.fleet import messages as m
from shoestring.fleet.config import CheckpointConfig, FleetConfig, MemberConfig, PaceConfig, ServersConfig
from shoestring.fleet.names import is_server
from shoestring.fleet.persisted import Persisted
from shoestring.fleet.rounds import RoundState
from shoestring.fleet.served import ServedCoordinator
from shoestring.fleet.serving import Serving
from shoestring.sim.storage import Disk, MemoryKeeper
from shoestring.sim.store import MemoryLedger, Tables
from tests.fleet.rig import Events
from tests.seeds import few

SAMPLES = 200


ONCE = Counter(dict.fromkeys(range(SAMPLES), 1))


class Gone(Exception):
    """This process ends, or what it wanted is not to be had."""


@dataclass
class Process:
    """A server or a worker: `act` sends one message and heeds the answer."""

    world: World
    name: str
    incarnation: int
    last_round: int = -1
    round: m.Round | None = None
    over: bool = False

    def act(self) -> None:
        """One message."""
        if self.round is None:
            reply = self.ask(self.joining())
            if isinstance(reply, m.Round):
                self.round, self.last_round = reply, reply.round_id
                self.enter(reply)
            return
        self.work(self.round)

    def ask(self, request: m.Request) -> m.Reply | None:
        """The answer; None where it is lost."""
        reply = self.world.handle(request)
        if isinstance(reply, m.Regroup):
            self.round = None
        self.over |= isinstance(reply, (m.Stop, m.Dismissed))
        return reply

    def joining(self) -> m.Join: ...

    def enter(self, round_: m.Round) -> None: ...

    def work(self, round_: m.Round) -> None: ...


@dataclass
class Server(Process):
    step: int = -1
    counts: Counter[int] = field(default_factory=Counter)
    staged: dict[int, list[int]] = field(default_factory=dict)
    held: m.Held | None = None
    copies: list[tuple[int, str, bytes]] = field(default_factory=list)
    asked: str = ""

    def joining(self) -> m.Join:
        return m.Join(self.name, self.incarnation, self.step, self.last_round, "", self.held)

    def enter(self, round_: m.Round) -> None:
        self.copies.clear()
        self.asked = ""
        if round_.source_rank < 0:
            self.staged.clear()
            self.counts, self.step = Counter(), round_.step
            if round_.checkpoint:
                files = self.world.disk.folders[round_.checkpoint]
                self.counts = Counter({int(k): v for k, v in json.loads(files[self.name]).items()})
        groups = (tuple(range(len(round_.members))),)
        self.held = m.Held("GGG", groups, round_.rank, round_.round_id)

    def apply(self, updates: tuple[m.Update, ...]) -> None:
        """In order; each push is there, or the coordinator was wrong."""
        for update in updates:
            if update.number == self.step and not update.pushes and update.save != self.asked:
                self.copy(update)
            if update.number <= self.step:
                continue
            assert update.number == self.step + 1, "an update was left out"
            for number in update.pushes:
                self.counts.update(self.staged.pop(number))
            for number in update.dropped:
                self.staged.pop(number, None)
            self.step = update.number
            if update.save:
                self.copy(update)

    def copy(self, update: m.Update) -> None:
        """What is to be saved, as of now."""
        self.asked = update.save
        self.copies.append((self.step, update.save, json.dumps(self.counts).encode()))

    def work(self, round_: m.Round) -> None:
        if self.copies:
            step, folder, data = self.copies[0]
            written = folder in self.world.disk.folders
            files = {self.name: self.world.disk.write(folder, self.name, data)} if written else {}
            error = "" if written else "the directory is gone"
            reply = self.ask(m.Saved(self.name, self.incarnation, round_.round_id, step, files, error))
            if isinstance(reply, m.Committed):
                self.copies.pop(0)
            if not isinstance(reply, m.Wait):
                return
        reply = self.ask(m.Next(self.name, self.incarnation, round_.round_id, self.step))
        if isinstance(reply, m.Updates):
            self.apply(reply.updates)


@dataclass
class Worker(Process):
    pushed: int = -1
    order: m.Order | None = None
    read: bool = False
    due: list[str] = field(default_factory=list)

    def joining(self) -> m.Join:
        return m.Join(self.name, self.incarnation, -1, self.last_round)

    def enter(self, round_: m.Round) -> None:
        self.order, self.pushed = None, -1

    def work(self, round_: m.Round) -> None:
        if self.order is None:
            self.heed(round_, self.ask(m.Next(self.name, self.incarnation, round_.round_id, self.pushed)))
        elif not self.read:
            for name in round_.servers:
                if (server := self.server(name)) is not None:
                    server.apply(self.order.updates)
            self.read = True
        elif self.due:
            if (server := self.server(self.due.pop())) is not None:
                positions = [p for start, stop in self.order.ranges for p in range(start, stop)]
                server.staged[self.order.step] = positions
        else:
            report = m.StepReport(1, 0.1, 0.0)
            step = self.order.step
            self.heed(round_, self.ask(m.Next(self.name, self.incarnation, round_.round_id, step, report)))

    def heed(self, round_: m.Round, reply: m.Reply | None) -> None:
        """An order, or nothing yet."""
        if isinstance(reply, m.Order):
            self.pushed = self.order.step if self.order is not None else self.pushed
            self.order, self.read, self.due = reply, False, list(round_.servers)

    def server(self, name: str) -> Server | None:
        """One of this worker's round; where it is not there (any more), the round is left."""
        found = self.world.processes.get(name)
        own = self.round.round_id if self.round is not None else -1
        if isinstance(found, Server) and found.round is not None and found.round.round_id == own:
            return found
        self.round = None
        return None


class World:
    """Processes, a coordinator, a disk, and chance."""

    def __init__(
        self, seed: int, staleness: int, servers: int = 2, workers: int = 3,
        pace: PaceConfig | None = None, **more: object,
    ) -> None:  # fmt: skip
        self.random = random.Random(seed)
        self.config = FleetConfig(
            members=MemberConfig(
                workers=workers, backoff_s=0.01, backoff_max_s=0.02, same_failures=10_000,
                heartbeat_timeout_s=1e6, start_timeout_s=1e6,
            ),
            pace=pace or PaceConfig(batch=12),
            checkpoint=CheckpointConfig(every_s=0.0, every_steps=4),
            servers=ServersConfig(count=servers, staleness=staleness),
        )  # fmt: skip
        self.spec = LedgerSpec(samples=SAMPLES, shuffle="none", **more)
        self.tables, self.disk, self.now = Tables(), Disk(), 0.0
        self.keeper = MemoryKeeper(self.disk, 2)
        self.events = Events()
        self.processes: dict[str, Process] = {}
        self.exits: list[m.Exit] = []
        self.said: list[m.Request] = []
        self.loss = 0.0
        self.outcome = ""
        self.interrupted = False
        self.notices: tuple[tuple[str, str], ...] = ()
        self.open()

    def open(self, resumed: bool = False) -> None:
        """A coordinator on what was committed."""
        self.ledger = MemoryLedger.open_on(self.tables, self.spec)
        self.coordinator = ServedCoordinator(
            self.config, self.ledger, self.keeper, self.events, self.now, resumed
        )

    def handle(self, request: m.Request) -> m.Reply | None:
        """The coordinator's answer. With some chance it dies before or after what it did is durable, the
        answer is lost, or an old message comes once more."""
        self.now += 0.01
        self.said = [*self.said[-20:], request]
        chance = self.random.random() / self.loss if self.loss else 1.0
        if chance < 0.02:
            self.coordinator.handle(self.now, request)
            self.open()
            return None
        reply = self.coordinator.handle(self.now, request)
        self.coordinator.flush()
        self.ledger.check()
        if chance < 0.04:
            self.open()
            return None
        if chance < 0.2:
            self.coordinator.handle(self.now, self.random.choice(self.said))
            self.coordinator.flush()
        return None if 0.2 < chance < 0.3 else reply

    def supervise(self) -> None:
        """A turn of the supervisor: exits are told, processes started and killed."""
        for process in [p for p in self.processes.values() if p.over]:
            self.end(process)
        alive = tuple((p.name, p.incarnation) for p in self.processes.values())
        reply = self.handle(
            m.SupervisorTick(alive, tuple(self.exits), self.interrupted, notices=self.notices)
        )
        if not isinstance(reply, m.SupervisorOrders):
            return
        self.exits.clear()
        assert reply.outcome != "failed", reply.error
        self.outcome = reply.outcome
        for name, incarnation in reply.kill:
            if name in self.processes and self.processes[name].incarnation == incarnation:
                self.end(self.processes[name])
        for name, incarnation in reply.spawn:
            kind = Server if is_server(name) else Worker
            self.processes[name] = kind(self, name, incarnation)

    def end(self, process: Process) -> None:
        del self.processes[process.name]
        self.exits.append(m.Exit(process.name, process.incarnation, -9, "killed"))

    def turn(self, deaths: float = 0.0) -> None:
        """Somebody acts, or dies; nobody once the run is over."""
        if self.outcome:
            return
        if not self.processes or self.random.random() < 0.1:
            self.supervise()
            return
        process = self.random.choice(sorted(self.processes.values(), key=lambda p: p.name))
        if self.random.random() < deaths:
            self.end(process)
        elif not process.over:
            process.act()

    def run(self, turns: int = 60_000) -> None:
        """To the end."""
        for _ in range(turns):
            self.turn()
            if self.outcome:
                return
        raise AssertionError(f"not to the end: {self.ledger.counts()}")

    def trained(self) -> list[Counter[int]]:
        """By server, the samples in the newest checkpoint."""
        files = self.disk.folders[self.disk.committed()[-1]]
        shards = [json.loads(data) for name, data in sorted(files.items()) if is_server(name)]
        return [Counter({int(k): v for k, v in shard.items()}) for shard in shards]


def chaos(world: World) -> World:
    """Run it to the end, the first part of it under all that can go wrong."""
    world.loss = 1.0
    for _ in range(3000):
        world.turn(deaths=0.01)
    world.loss = 0.0
    world.run()
    return world


@pytest.mark.parametrize("staleness", [0, 1, -1])
@pytest.mark.parametrize("seed", few(8, 60))
def test_each_sample_is_in_the_model_once_whatever_happens(seed: int, staleness: int) -> None:
    world = chaos(World(seed, staleness, servers=1 + seed % 3))
    assert world.outcome == "finished"
    assert world.trained() == [ONCE] * (1 + seed % 3)


@pytest.mark.parametrize("seed", few(4, 30))
def test_at_most_once_is_never_twice(seed: int) -> None:
    world = chaos(World(seed, -1, delivery="at_most_once"))
    for shard in world.trained():
        assert set(shard.values()) == {1}


def test_without_harm_each_batch_is_one_update_and_nothing_is_done_twice() -> None:
    world = World(0, 0)
    world.run()
    steps = world.events.of("step")
    assert [step["step"] for step in steps] == list(range(1, 18)) and steps[-1]["done"] == SAMPLES
    assert all(len(step["workers"]) == 3 for step in steps)
    assert len(world.events.of("round")) == 1 and not world.events.of("fault")


def test_the_loss_of_a_worker_stops_nobody() -> None:
    world = World(1, -1)
    while len(world.events.of("step")) < 5:
        world.turn()
    world.end(world.processes["w1"])
    world.run()
    assert len(world.events.of("round")) == 1, "workers are guests"
    assert world.trained() == [ONCE] * 2


def test_the_loss_of_a_server_takes_model_and_ledger_back_together() -> None:
    world = World(2, -1)
    while len(world.events.of("checkpoint")) < 2:
        world.turn()
    saved = world.events.of("checkpoint")[-1]["step"]
    world.end(world.processes["s1"])
    world.run()
    rounds = world.events.of("round")
    assert len(rounds) == 2 and rounds[1]["step"] == saved
    assert world.trained() == [ONCE] * 2


def test_a_coordinator_that_comes_back_finds_all_servers_as_they_were() -> None:
    world = World(3, -1)
    while len(world.events.of("step")) < 6:
        world.turn()
    world.open()
    world.run()
    rounds = world.events.of("round")
    assert len(rounds) == 2 and rounds[1]["state_from"] == "s0"
    assert not [event for event in world.events.of("decision") if event.get("action") == "restore"]
    numbers = [step["step"] for step in world.events.of("step")]
    assert numbers == sorted(set(numbers))


def test_an_interrupt_ends_the_run_where_a_server_is_gone() -> None:
    world = World(5, -1)
    while len(world.events.of("step")) < 6:
        world.turn()
    world.interrupted = True
    world.end(world.processes["s1"])
    world.run(3000)
    assert world.outcome == "interrupted"


@pytest.mark.parametrize("staleness", [0, 1, -1])
def test_a_late_copy_of_a_join_harms_nobody(staleness: int) -> None:
    world = World(6, staleness)
    joins: list[m.Request] = []
    while len(world.events.of("step")) < 6:
        joins += [request for request in world.said if isinstance(request, m.Join)][-1:]
        world.turn()
    for request in joins[:20]:
        world.handle(request)
    world.run(20_000)
    assert world.trained() == [ONCE] * 2


@pytest.mark.parametrize("staleness", [0, -1])
def test_no_more_updates_are_made_than_steps_are_wanted(staleness: int) -> None:
    world = World(7, staleness, workers=6, pace=PaceConfig(batch=12, steps=5))
    world.run()
    assert [step["step"] for step in world.events.of("step")] == [1, 2, 3, 4, 5]
    assert world.events.of("checkpoint")[-1]["step"] == 5


@pytest.mark.parametrize("staleness", [0, -1])
def test_an_interrupted_run_makes_as_many_updates_as_it_would_have(staleness: int) -> None:
    world = World(8, staleness, pace=PaceConfig(batch=12, steps=9))
    while len(world.events.of("step")) < 3:
        world.turn()
    world.interrupted = True
    world.run()
    assert world.outcome == "interrupted"
    world.outcome, world.interrupted = "", False
    world.processes.clear()
    world.open(resumed=True)
    world.run()
    assert world.outcome == "finished"
    assert [step["step"] for step in world.events.of("step")] == list(range(1, 10))


def test_in_a_bulk_synchronous_run_who_has_to_go_goes_with_the_next_update() -> None:
    world = World(9, 0)
    while len(world.events.of("step")) < 4:
        world.turn()
    world.notices = (("w0", "its host is to be drained"),)
    while "w0" in world.processes and not world.processes["w0"].over:
        world.turn()
    world.notices = ()
    assert len(world.events.of("step")) <= 6
    world.run()
    assert world.trained() == [ONCE] * 2


def test_a_worker_that_keeps_leaving_is_told_and_waits_ever_longer() -> None:
    world = World(10, -1)
    while len(world.events.of("step")) < 2:
        world.turn()
    for _ in range(12):
        round_id = world.coordinator.standing[0]
        reply = world.handle(m.Join("w0", world.processes["w0"].incarnation, -1, round_id, "no route"))
    assert isinstance(reply, m.Wait)
    told = [event["reason"] for event in world.events.of("fault") if "no route" in event["reason"]]
    assert told and "waits" in told[-1]
    world.run()
    assert world.trained() == [ONCE] * 2


def test_the_checks_would_notice_a_push_that_counts_before_all_servers_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Worker, "due", property(lambda self: [], lambda self, value: None), raising=False)
    world = World(4, -1)
    with pytest.raises(KeyError):
        world.run()


def test_the_checks_would_notice_an_update_that_is_forgotten_too_early(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(RoundState, "confirmed", lambda self: max(self.applied.values(), default=-1))
    with pytest.raises(AssertionError, match="left out"):
        for seed in range(10):
            chaos(World(seed, -1))


def test_the_checks_would_notice_what_counts_as_done_without_being_in_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = Serving.goodbye

    def wrong(self: Serving, now: float, round_: RoundState, worker: str, kept: Persisted) -> None:
        if worker in round_.guests and (guest := round_.guests[worker]).order is not None:
            self._ledger.complete(now, guest.lease_id, worker)
        right(self, now, round_, worker, kept)

    monkeypatch.setattr(Serving, "goodbye", wrong)
    models = [chaos(World(seed, -1)).trained()[0] for seed in range(5)]
    assert any(model != ONCE for model in models)
