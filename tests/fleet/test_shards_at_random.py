"""Jobs over rows at random: workers work, die, hang, leave; messages are lost, repeated and reordered; the
coordinator dies at any point. In the end each row is in exactly one published file."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m
from tests.fleet.shard_rig import Died, ShardRig, positions

PATIENCE = 300
AROUND = ["tick", "drain", "restart", "restart", "everything dies", "die while publishing", "late copy"]
WORK = [*["ask"] * 5, *["finish"] * 5, "give back", "tell", "told to go", "die", "leave"]
FATES = ["", "", "", "lost", "unanswered", "dies before", "dies of it"]


class Process:
    """A worker's process as it sees itself."""

    def __init__(self) -> None:
        self.request = 1
        self.held: dict[int, m.Shard] = {}
        self.staged: dict[int, Staged] = {}
        self.stopped = False


class Jobs(RuleBasedStateMachine):
    """See the module."""

    @initialize(
        rows=st.integers(1, 60),
        shard_rows=st.integers(1, 12),
        poison=st.sets(st.integers(0, 59), max_size=2),
    )
    def begin(self, rows: int, shard_rows: int, poison: set[int]) -> None:
        self.rig = ShardRig(rows, shard_rows, workers=3, same_failures=50)
        self.rows, self.poison = rows, {at for at in poison if at < rows}
        self.living: dict[tuple[str, int], Process] = {}
        self.sent: list[m.Request] = []
        self.exits: list[m.Exit] = []
        self.supervise(0.0)

    # Two rules with many arms: a rule of its own for each is left out of whole runs (swarm testing), and then
    # nothing happens in them.

    @rule(what=st.sampled_from(AROUND), number=st.integers(1, 200))
    def around(self, what: str, number: int) -> None:
        if what == "tick":
            self.supervise(number % 3 * 0.5)
        elif what == "drain":
            self.supervise(0.0, (f"w{number % 3}",))
        elif what == "restart":
            self.rig.restart()
        elif what == "everything dies" and number < 20:
            self.living.clear()
            self.exits.clear()
            self.rig.restart(resumed=True)
        elif what == "die while publishing":
            self.rig.sink.die_at = 1 + number % 3
        elif what == "late copy" and self.sent:
            self._say(self.sent[-(number % len(self.sent)) - 1])

    @rule(
        acts=st.lists(
            st.tuples(
                st.sampled_from(["w0", "w1", "w2"]),
                st.sampled_from(WORK),
                st.sampled_from(FATES),
            ),
            max_size=6,
        )
    )
    def work_on(self, acts: list[tuple[str, str, str]]) -> None:
        for act in acts:
            self.work(*act)

    def work(self, worker: str, what: str, fate: str = "") -> None:
        key = max((key for key in self.living if key[0] == worker), default=None)
        if key is None:
            self.supervise(0.5)
            return
        process = self.living[key]
        if what == "ask" and not process.stopped:
            self._ask(key, process, fate)
        elif what == "finish" and process.held:
            self._finish(key, process, fate)
        elif what == "give back":
            self._give_back(key, process, fate)
        elif what == "tell":
            self._say(m.ShardTold(*key), fate)
        elif what == "told to go":
            self._say(m.ShardTold(*key, notice="SIGTERM"), fate)
        elif what == "die":
            self._end(key, -9)
        elif what == "leave" and process.stopped:
            self._end(key, 0)  # with what it holds

    def supervise(self, after_s: float, leaving: tuple[str, ...] = ()) -> None:
        exits, self.exits = self.exits, []
        notices = tuple((worker, "its machine is to be drained") for worker in leaving)
        try:
            orders = self.rig.tick(*exits, after_s=after_s, notices=notices)
        except Died:
            self.exits = exits
            self.rig.restart()
            return
        for process in orders.spawn:
            self.living[process] = Process()
        for process in orders.kill:
            self._end(process, -9)
        for name, incarnation in self.living:
            self._say(m.Heartbeat(name, incarnation, -1, "compute", 0.0))

    # --- what workers do -------------------------------------------------------------------

    def _ask(self, key: tuple[str, int], process: Process, fate: str) -> None:
        reply = self._say(m.ShardLease(*key, process.request), fate)
        if isinstance(reply, m.Shard):
            process.request += 1
            assert reply.lease_id not in process.held
            process.held[reply.lease_id] = reply
            if self.poison & set(positions(reply)) and not reply.verdicts:
                self._end(key, -9)
        if isinstance(reply, m.Stop):
            process.stopped = True
        if isinstance(reply, m.Dismissed):
            self._end(key, 0)

    def _finish(self, key: tuple[str, int], process: Process, fate: str) -> None:
        lease_id = min(process.held)
        if lease_id not in process.staged:
            name = f"{key[0]}.{key[1]}"
            process.staged[lease_id] = self.rig.stage(name, process.held[lease_id])
        staged = process.staged[lease_id]
        reply = self._say(m.ShardDone(*key, lease_id, staged), fate)
        if not isinstance(reply, m.DoneReply):
            return
        if reply.outcome == "late":  # then it is removed, so it must not be one that counts
            assert staged not in [output.staged for output in self.rig.ledger.outputs()]
            self.rig.sink.staged.pop(staged.name, None)
        del process.held[lease_id], process.staged[lease_id]

    def _give_back(self, key: tuple[str, int], process: Process, fate: str) -> None:
        unfinished = sorted(set(process.held) - set(process.staged))
        if unfinished and self._say(m.ShardBack(*key, unfinished[0], "not begun"), fate) is not None:
            del process.held[unfinished[0]]

    # --- what has to hold ------------------------------------------------------------------

    @invariant()
    def nothing_is_published_twice(self) -> None:
        if hasattr(self, "rig"):
            rows = [at for at, _ in self.rig.sink.rows()]
            assert len(rows) == len(set(rows)), rows
            self.rig.ledger.check()

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.rig.sink.die_at = -1
        for _ in range(PATIENCE):
            if self.rig.coordinator.outcome:
                break
            self.supervise(1.0)
            for worker in ("w0", "w1", "w2"):
                for what in ("ask", "finish", "leave"):
                    self.work(worker, what)
        assert self.rig.coordinator.outcome == "finished", self.rig.tick()
        published = self.rig.sink.rows()
        assert [at for at, _ in published] == list(range(self.rows))
        dead = {letter.position for letter in self.rig.ledger.dead_letters()}
        assert {at for at, error in published if error} == dead >= self.poison

    # --- inside ----------------------------------------------------------------------------

    def _say(self, request: m.Request, fate: str = "") -> m.Reply | None:
        """Send; None: lost on the way there, or its answer was, or the coordinator died."""
        self.sent.append(request)
        if fate == "dies of it":
            self.rig.send(request, flush=False)
        if fate in ("dies before", "dies of it"):
            self.rig.restart()
        if fate in ("lost", "dies before", "dies of it"):
            return None
        try:
            reply = self.rig.send(request)
        except Died:
            self.rig.restart()
            return None
        return None if fate == "unanswered" else reply

    def _end(self, key: tuple[str, int], code: int) -> None:
        if key in self.living:
            del self.living[key]
            self.exits.append(m.Exit(*key, code, "killed by SIGKILL" if code else ""))


TestJobs: Any = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
