"""A simulated worker: the real protocol as a state machine around a counting model (source: ours).

The model is one byte a position, and a step adds 1 for each position used. `tensors` and `step`
are apart, as in the real loop: a copy that breaks off leaves tensors that are neither old nor
new, and a step of -1 says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoestring.base.errors import CheckpointError
from shoestring.fleet import messages as m
from shoestring.sim.network import Line

if TYPE_CHECKING:
    from shoestring.sim.group import Group
    from shoestring.sim.world import World

TORN = 0x7F
ASK_S = 0.002


@dataclass
class Computing:
    """An order under way: since when, and how long it takes."""

    order: m.Order
    since_s: float
    took_s: float


class Worker:
    """One process (incarnation) of a worker.

    Attributes:
        tensors: the model, one counter a position; step: applied steps, -1: not to be used.
        round_: the round it was given last; settled: whether its state is that of this round.
    """

    def __init__(self, world: World, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.tensors = bytes(world.positions)
        self.step = -1
        self.round_: m.Round | None = None
        self.settled = False
        self.exit_code: int | None = None
        self.error = ""
        self.hung = self.stalled = False
        self.slowness = 1.0
        self.notice = ""
        self._world = world
        self._who = f"{name}.{incarnation}"
        self._line = Line(world, self._who, self.later)
        self._pulse = Line(world, f"{self._who}/pulse", self._later_pulse)
        self._lookout = Line(world, f"{self._who}/lookout", self._later_pulse)
        self._computing: Computing | None = None
        self._group: Group | None = None
        self._last_round = -1
        self._phase, self._phase_since_s = "load", world.now
        self._frozen: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.later(world.rng.uniform(0.01, 0.08), self._join, "")
        self._later_pulse(self._heartbeat_s(), self._beat)

    # --- time, life and death ----------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process exists."""
        return self.exit_code is None

    @property
    def able(self) -> bool:
        """Whether the process exists and moves."""
        return self.alive and not (self.hung or self.stalled)

    def later(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        """Schedule something of the main thread."""
        self._world.after(delay_s, self._run, do, args)

    def kill(self, code: int, error: str = "") -> None:
        """End the process at once; the supervisor hears of it later."""
        if not self.alive:
            return
        self.exit_code, self.error = code, error
        self._leave_group("it died")
        self._world.supervisor.ended(self)

    def wake(self) -> None:
        """A hung or stalled process goes on where it stopped."""
        was_hung = self.hung
        self.hung = self.stalled = False
        frozen, self._frozen = self._frozen, []
        for do, args in frozen:
            self.later(0.0, do, *args)
        if was_hung:
            self._later_pulse(0.0, self._beat)

    def crash(self, error: str) -> None:
        """Fail with an error: the last words may arrive, then the process ends."""
        if self.alive and not self.hung:
            self._world.after(self._world.rng.uniform(0.0, 0.1), self.kill, 1, error)
            self.stalled = True
            Line(self._world, f"{self._who}/last", self._later_pulse).tell(
                m.Crashed(self.name, self.incarnation, error), lambda _: None
            )

    def _run(self, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.alive:
            return
        if self.hung or self.stalled:
            self._frozen.append((do, args))
            return
        do(*args)

    def _later_pulse(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        self._world.after(delay_s, self._run_pulse, do, args)

    def _run_pulse(self, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.alive and not self.hung:
            do(*args)

    def _heartbeat_s(self) -> float:
        return self._world.scenario.fleet.members.heartbeat_s

    def _beat(self) -> None:
        since_s = self._world.now - self._phase_since_s
        self._pulse.tell(
            m.Heartbeat(self.name, self.incarnation, self.step, self._phase, since_s), lambda _: None
        )
        self._later_pulse(self._heartbeat_s(), self._beat)

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_since_s = phase, self._world.now

    def _exit(self, reason: str) -> None:
        self._world.note("exit", self._who, reason)
        self.kill(0)

    # --- joining -----------------------------------------------------------------------------

    def _join(self, problem: str) -> None:
        self._computing = None
        self._enter("idle")
        self._leave_group("it left the round")
        self.settled = False
        self._line.call(
            m.Join(
                self.name,
                self.incarnation,
                self.step,
                self._last_round,
                problem,
                micro_batch=self._world.scenario.fleet.pace.batch,
            ),
            self._on_round,
        )

    def _on_round(self, reply: m.Reply) -> None:
        if not isinstance(reply, m.Round):
            self._on_other(reply)
            return
        self.round_, self._last_round = reply, reply.round_id
        self._world.note("round", self._who, reply)
        self._drop_if_left(reply)
        self._group = self._world.group_of(reply)
        if len(reply.members) > 1:
            self._line.call(m.KvSet(reply.round_id, f"at/{reply.rank}", self._who.encode()), self._meet)
        else:
            self._connected()

    def _drop_if_left(self, round_: m.Round) -> None:
        """The fleet goes on from an older state than this one, which must never be offered again."""
        if self.step > round_.step:
            self.step = -1

    def _wrongly_asked(self, round_: m.Round) -> bool:
        return round_.rank == round_.source_rank and self.step != round_.step

    def _meet(self, reply: m.Reply, peer: int = 0) -> None:
        """Look up every peer's address in the rendezvous table."""
        if not isinstance(reply, (m.Ack, m.Value)):
            self._on_other(reply)
            return
        round_ = self._here()
        if peer == len(round_.members):
            self._connected()
            return
        self._line.call(m.KvGet(round_.round_id, f"at/{peer}"), lambda answer: self._meet(answer, peer + 1))

    def _connected(self) -> None:
        round_ = self._here()
        if round_.source_rank < 0:
            self.step = -1
            self._enter("restore")
            self.later(self._world.rng.uniform(0.001, 0.03), self._restore)
        elif self._wrongly_asked(round_):
            self._lost("asked for a state that it does not hold")
        else:
            self._exchange("behind", self.step != round_.step, self._align)

    def _align(self, behind: dict[str, bool]) -> None:
        """Copy the source's tensors where anybody needs them, as one collective."""
        round_ = self._here()
        if not any(behind.values()):
            self._settle()
            return
        if self.step != round_.step:
            self.step = -1
            self.tensors = bytes([TORN]) * len(self.tensors)
        self._exchange("copy", self.tensors, self._copied)

    def _copied(self, tensors: dict[str, bytes]) -> None:
        round_ = self._here()
        self.tensors = tensors[round_.members[round_.source_rank]]
        self._settle()

    def _restore(self) -> None:
        round_ = self._here()
        if round_.checkpoint:
            try:
                self.tensors = self._world.read_checkpoint(round_.checkpoint)
            except CheckpointError as error:
                self.tensors = bytes([TORN]) * len(self.tensors)
                self._line.call(
                    m.BadCheckpoint(
                        self.name, self.incarnation, round_.round_id, round_.checkpoint, error.what
                    ),
                    lambda _: self._join("the checkpoint cannot be restored"),
                )
                return
        else:
            self.tensors = bytes(len(self.tensors))
        self._settle()

    def _settle(self) -> None:
        self.step, self.settled = self._here().step, True
        self._world.checks.adopted(self)
        self._ask(None)

    # --- stepping ----------------------------------------------------------------------------

    def _ask(self, report: m.StepReport | None) -> None:
        self._enter("idle")
        round_id = self._here().round_id
        request = m.Next(self.name, self.incarnation, round_id, self.step, report, self.notice)
        self._line.call(request, self._on_order)

    def _on_order(self, reply: m.Reply) -> None:
        if isinstance(reply, m.Save):
            self._enter("save")
            self.later(self._world.rng.uniform(0.001, 0.02), self._save, reply)
        elif isinstance(reply, m.Order):
            self._enter("compute")
            count = sum(stop - start for start, stop in reply.ranges)
            size = min(count, reply.micro_batch)
            room = self._world.scenario.room
            if self.name in room and size > room[self.name]:
                self._out_of_memory(reply.step, size)
                return
            speeds = self._world.scenario.speeds
            speed = speeds[self.name] if self.name in speeds else min(speeds.values())
            took_s = (0.002 + count / speed) * self._world.rng.uniform(0.9, 1.1) * self.slowness
            computing = self._computing = Computing(reply, self._world.now, took_s)
            self.later(took_s, self._computed, computing)
            if reply.backups:
                self._later_pulse(ASK_S, self._ask_if_late, computing)
        else:
            self._on_other(reply)

    def _out_of_memory(self, step: int, size: int) -> None:
        """A pass does not fit: say so and leave the round, in which the step was not applied."""
        self._world.seen["out_of_memory"] += 1
        request = m.OutOfMemory(
            self.name, self.incarnation, self._here().round_id, step, size, "no room for it"
        )
        self._tell(request, lambda: self._join("out of memory"))

    def _ask_if_late(self, computing: Computing) -> None:
        """The second thread asks on a line of its own, as long as this order is computed."""
        if self._computing is computing:
            request = m.Lagging(self.name, self.incarnation, self._here().round_id, computing.order.step)
            self._lookout.call(request, lambda reply: self._on_verdict(reply, computing))

    def _on_verdict(self, reply: m.Reply, computing: Computing) -> None:
        if self._computing is not computing or not isinstance(reply, m.Verdict):
            return
        if reply.late:
            self.later(0.0, self._drop, computing)
        else:
            self._later_pulse(reply.retry_s, self._ask_if_late, computing)

    def _drop(self, computing: Computing) -> None:
        """Stop in the middle: keep whole passes, or nothing at all, and give the rest back."""
        if self._computing is not computing:
            return
        self._world.seen["late"] += 1
        order = computing.order
        positions = [p for start, stop in order.ranges for p in range(start, stop)]
        share = (self._world.now - computing.since_s) / computing.took_s
        size = max(1, min(len(positions), order.micro_batch))
        kept = int(share * len(positions)) // size * size if self._world.rng.random() < 0.5 else 0
        left = tuple((p, p + 1) for p in positions[kept:])
        took_s = self._world.now - computing.since_s
        request = m.GiveBack(self.name, self.incarnation, self._here().round_id, order.step, left)
        self._computing = None
        begun = min(len(positions), kept + size)
        self._report_failures(
            order,
            positions[:kept],
            lambda good: self._tell(request, lambda: self._through(order, good, took_s, begun)),
        )

    def _computed(self, computing: Computing) -> None:
        if self._computing is not computing:
            return
        self._computing = None
        order = computing.order
        positions = [p for start, stop in order.ranges for p in range(start, stop)]
        self._report_failures(order, positions, lambda good: self._through(order, good, computing.took_s))

    def _through(self, order: m.Order, good: list[int], took_s: float, begun: int = 0) -> None:
        report = m.StepReport(len(good), took_s, 0.001, metrics={"loss": 1.0 / order.step}, begun=begun)
        if not order.tell:
            self._contribute(order, good, report)
            return
        request = m.Ready(self.name, self.incarnation, self._here().round_id, order.step, report)
        self._tell(request, lambda: self._contribute(order, good, report))

    def _report_failures(
        self, order: m.Order, positions: list[int], go_on: Callable[[list[int]], None]
    ) -> None:
        bad = [p for p in positions if self._world.sample_fails(p)]
        good = [p for p in positions if p not in bad]
        if not bad:
            go_on(good)
            return
        failures = tuple((p, f"cannot read {p}") for p in bad)
        request = m.Failed(self.name, self.incarnation, self._here().round_id, order.step, failures)
        self._tell(request, lambda: go_on(good))

    def _tell(self, request: m.Request, go_on: Callable[[], None]) -> None:
        """Go on once the coordinator has heard it."""
        self._line.call(request, lambda reply: go_on() if isinstance(reply, m.Ack) else self._on_other(reply))

    def _contribute(self, order: m.Order, used: list[int], report: m.StepReport) -> None:
        self._enter("exchange")
        self._exchange(f"step {order.step}", used, lambda parts: self._update(order, parts, report))

    def _update(self, order: m.Order, parts: dict[str, list[int]], report: m.StepReport) -> None:
        counters = bytearray(self.tensors)
        for used in parts.values():
            for position in used:
                counters[position] += 1
        self.tensors, self.step = bytes(counters), order.step
        self._world.seen["samples"] += report.samples
        self._world.note("applied", self._who, order.step)
        self._world.checks.applied(self)
        self._ask(report)

    def _save(self, order: m.Save) -> None:
        round_ = self._here()
        share = -(-len(self.tensors) // len(round_.members))
        name = f"part-{round_.rank:03d}"
        files, error = {}, ""
        try:
            part = self.tensors[round_.rank * share : (round_.rank + 1) * share]
            files[name] = self._world.disk.write(order.directory, name, part)
        except CheckpointError as problem:
            error = problem.what
        self._enter("idle")
        request = m.Saved(self.name, self.incarnation, round_.round_id, order.step, files, error)
        self._line.call(request, self._on_saved)

    def _on_saved(self, reply: m.Reply) -> None:
        if isinstance(reply, m.Committed):
            self._ask(None)
        else:
            self._on_other(reply)

    # --- shared ------------------------------------------------------------------------------

    def _on_other(self, reply: m.Reply) -> None:
        if isinstance(reply, m.Regroup):
            self._join("")
        elif isinstance(reply, (m.Stop, m.Dismissed)):
            self._exit(f"{type(reply).__name__}: {reply.reason}")
        else:
            self._world.checks.fail(f"{self._who} was answered {reply}, which has no place here")

    def _exchange(self, what: str, payload: Any, done: Callable[[dict[str, Any]], None]) -> None:
        assert self._group is not None
        self._group.exchange(self, what, payload, done, self._lost)

    def _lost(self, problem: str) -> None:
        self._world.note("lost", self._who, problem)
        self._join(problem)

    def _leave_group(self, reason: str) -> None:
        if self._group is not None:
            self._group.leave(self.name, reason)
            self._group = None

    def _here(self) -> m.Round:
        assert self.round_ is not None
        return self.round_
