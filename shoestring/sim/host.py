"""The coordinator's process: turns of requests, one flush, then answers; and its supervisor (source: ours).

A turn is what the real server does in one turn of its event loop. A crash can come at every
point of it: before, after some requests were handled, after the flush, among the answers. What
was not flushed is lost with the process; what was flushed is in the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoestring.base.errors import LedgerError
from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m
from shoestring.fleet.coordinator import Coordinator
from shoestring.sim.network import Line

if TYPE_CHECKING:
    from shoestring.sim.workers import Worker
    from shoestring.sim.world import World

TURN_S = 0.0005
TICK_S = 0.02
CRASH_POINTS = ("before", "handled", "flushed", "answering")
SUPERVISE_S = 0.05
LONG_UP_S = 1e6  # no clock of a machine goes below zero


class Host:
    """Runs one coordinator after the other on what the store holds."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.ledger: DurableLedger | None = None
        self.coordinator: Coordinator | None = None
        self._inbox: list[tuple[Line, int, bytes]] = []
        self._crash_at = ""
        self._life = 0
        self._ahead_s = LONG_UP_S

    @property
    def clock_s(self) -> float:
        """What the coordinator's clock says."""
        return self._world.now + self._ahead_s

    def jump(self, by_s: float) -> None:
        """The coordinator's clock jumps: forwards while it runs; to anywhere while it does not, as on another
        machine."""
        if by_s < 0:
            self.die()
        self._ahead_s += by_s

    def start(self, resumed: bool) -> None:
        """Start a coordinator, unless one runs."""
        if self.coordinator is not None or self._world.over:
            return
        world = self._world
        self.ledger = world.open_ledger()
        self.coordinator = world.make_coordinator(self.ledger, resumed)
        self._life += 1
        self._inbox = []
        self._crash_at = ""
        world.note("start", "coordinator", self._life)
        world.after(TICK_S, self._tick, self._life)

    def crash_soon(self, point: str) -> None:
        """Die at this point of the next turn."""
        if self.coordinator is not None:
            self._crash_at = point

    def die(self) -> None:
        """End the process; callers see their connections break."""
        if self.coordinator is None:
            return
        self._world.note("dead", "coordinator", self._life)
        self._world.seen["coordinator_deaths"] += 1
        if self.ledger is not None:
            self.ledger.close()
        self.coordinator = self.ledger = None
        inbox, self._inbox = self._inbox, []
        for line, attempt, _ in inbox:
            self._world.network.refuse(line, attempt)
        self._world.supervisor.coordinator_died()

    def receive(self, line: Line, attempt: int, data: bytes) -> None:
        """A request has arrived."""
        if self.coordinator is None:
            self._world.network.refuse(line, attempt)
            return
        if not self._inbox:
            self._world.after(TURN_S, self._turn, self._life)
        self._inbox.append((line, attempt, data))

    def _turn(self, life: int) -> None:
        if self.coordinator is None or life != self._life or not self._inbox:
            return
        if self._crash_at == "before":
            self.die()
            return
        world, coordinator = self._world, self.coordinator
        batch, self._inbox = self._inbox, []
        answers: list[tuple[Line, int, m.Reply]] = []
        some = world.rng.randint(1, len(batch)) if self._crash_at == "handled" else len(batch)
        for line, attempt, data in batch[:some]:
            request = m.decode_request(data)
            reply = coordinator.handle(self.clock_s, request)
            world.heard(line.who, data, request, reply)
            answers.append((line, attempt, reply))
            if not world.options.flush_first:
                world.network.reply(line, attempt, reply)
        if self._crash_at == "handled" or not self._flush(coordinator):
            self._inbox = batch
            self.die()
            return
        if self._crash_at == "flushed":
            answers = []
        elif self._crash_at == "answering":
            answers = answers[: world.rng.randrange(len(answers))]
        if world.options.flush_first:
            for line, attempt, reply in answers:
                world.network.reply(line, attempt, reply)
        if self._crash_at:
            self._inbox = batch[len(answers) :]
            self.die()

    def _tick(self, life: int) -> None:
        if self.coordinator is None or life != self._life:
            return
        self.coordinator.tick(self.clock_s)
        if not self._flush(self.coordinator):
            self.die()
            return
        self._world.after(TICK_S, self._tick, life)

    def _flush(self, coordinator: Coordinator) -> bool:
        try:
            coordinator.flush()
        except LedgerError:
            self._world.seen["flushes_failed"] += 1
            return False
        self._world.checks.flushed()
        return True


class Supervisor:
    """Starts and kills processes as it is told, and reports what it sees, some time later."""

    def __init__(self, world: World, life: int) -> None:
        self._world = world
        self._life = life
        self._line = Line(world, f"supervisor.{life}", self._later)
        self._processes: dict[tuple[str, int], Worker] = {}
        self._exits: dict[tuple[str, int], m.Exit] = {}
        self._restart_s = 0.02
        self.interrupt = False
        self.gone = False
        self._answered = False
        self._later(0.0, self._tick)

    def ended(self, worker: Worker) -> None:
        """A process ended; its exit is seen after a while."""
        slow = self._world.rng.random() < 0.2
        self._later(self._world.rng.uniform(0.001, 0.5 if slow else 0.02), self._see_exit, worker)

    def coordinator_died(self) -> None:
        """Start another one after a pause."""
        self._later(self._world.rng.uniform(0.005, 0.3), self._start_coordinator)

    def _start_coordinator(self) -> None:
        self._world.host.start(resumed=not self._answered)

    def _later(self, delay_s: float, do: object, *args: object) -> None:
        self._world.after(delay_s, self._run, do, args)

    def _run(self, do: object, args: tuple[object, ...]) -> None:
        if not self.gone:
            assert callable(do)
            do(*args)

    def _see_exit(self, worker: Worker) -> None:
        who = (worker.name, worker.incarnation)
        code = worker.exit_code if worker.exit_code is not None else 0
        if self._processes.pop(who, None) is not None:
            self._exits[who] = m.Exit(worker.name, worker.incarnation, code, worker.error)

    def _tick(self) -> None:
        reported = tuple(self._exits.values())
        request = m.SupervisorTick(tuple(self._processes), reported, self.interrupt)
        self._line.call(request, lambda reply: self._obey(reply, reported))

    def _obey(self, reply: m.Reply, reported: tuple[m.Exit, ...]) -> None:
        if not isinstance(reply, m.SupervisorOrders):
            self._world.checks.fail(f"the supervisor was answered {reply}")
            return
        self._answered = True
        for ended in reported:
            self._exits.pop((ended.worker, ended.incarnation), None)
        for who in reply.kill:
            if who in self._processes:
                self._processes[who].kill(-9)
        for who in reply.spawn:
            if who not in self._processes and who not in self._exits:
                self._processes[who] = self._world.spawn(*who)
        if reply.outcome:
            self._world.ended(reply.outcome, reply.error)
        else:
            self._later(SUPERVISE_S, self._tick)
