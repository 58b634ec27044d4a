"""Jobs over rows at random: workers work, die, hang, leave; messages are lost, repeated and reordered; the
coordinator dies at any point. In the end each row is in exactly one published file."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m
from tests.fleet.shard_rig import Died, ShardRig, positions

PATIENCE = 300
WORKERS = st.sampled_from(["w0", "w1", "w2"])


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
        self.supervise()

    # --- what the surroundings do ----------------------------------------------------------

    @rule(after_s=st.sampled_from([0.0, 0.5, 5.0]), leaving=st.sampled_from([(), (), ("w0",), ("w1",)]))
    def supervise(self, after_s: float = 0.0, leaving: tuple[str, ...] = ()) -> None:
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

    @rule()
    def the_coordinator_dies(self) -> None:
        self.rig.restart()

    @rule()
    def everything_dies(self) -> None:
        self.living.clear()
        self.exits.clear()
        self.rig.restart(resumed=True)

    @rule(when=st.integers(1, 3))
    def it_will_die_while_it_publishes(self, when: int) -> None:
        self.rig.sink.die_at = when

    @precondition(lambda self: self.sent)
    @rule(at=st.integers(0, 200))
    def a_late_copy_arrives(self, at: int) -> None:
        self._say(self.sent[at % len(self.sent)])

    # --- what workers do -------------------------------------------------------------------

    @rule(worker=WORKERS, lost=st.booleans(), unanswered=st.booleans())
    def ask(self, worker: str, lost: bool = False, unanswered: bool = False) -> None:
        if (key := self._newest(worker)) is None or self.living[key].stopped:
            return
        process = self.living[key]
        reply = self._say(m.ShardLease(*key, process.request), lost, unanswered)
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

    @rule(worker=WORKERS, lost=st.booleans(), unanswered=st.booleans())
    def finish(self, worker: str, lost: bool = False, unanswered: bool = False) -> None:
        key = self._newest(worker)
        if key is None or not self.living[key].held:
            return
        process = self.living[key]
        lease_id = min(process.held)
        if lease_id not in process.staged:
            name = f"{worker}.{key[1]}"
            process.staged[lease_id] = self.rig.stage(name, process.held[lease_id])
        staged = process.staged[lease_id]
        reply = self._say(m.ShardDone(*key, lease_id, staged), lost, unanswered)
        if not isinstance(reply, m.DoneReply):
            return
        if reply.outcome == "late":
            self.rig.sink.staged.pop(staged.name, None)
        del process.held[lease_id], process.staged[lease_id]

    @rule(worker=WORKERS, lost=st.booleans())
    def give_back(self, worker: str, lost: bool) -> None:
        key = self._newest(worker)
        unfinished = sorted(set(self.living[key].held) - set(self.living[key].staged)) if key else []
        if key is not None and unfinished:
            reply = self._say(m.ShardBack(*key, unfinished[0], "not begun"), lost)
            if reply is not None:
                del self.living[key].held[unfinished[0]]

    @rule(worker=WORKERS, notice=st.sampled_from(["", "", "SIGTERM"]))
    def tell(self, worker: str, notice: str) -> None:
        if (key := self._newest(worker)) is not None:
            self._say(m.ShardTold(*key, notice=notice))

    @rule(worker=WORKERS)
    def leave(self, worker: str) -> None:
        """With what it holds, where it was told to go."""
        if (key := self._newest(worker)) is not None and self.living[key].stopped:
            self._end(key, 0)

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        if (key := self._newest(worker)) is not None:
            self._end(key, -9)

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
            self.supervise(after_s=1.0)
            for worker in ("w0", "w1", "w2"):
                self.ask(worker)
                self.finish(worker)
                self.leave(worker)
        assert self.rig.coordinator.outcome == "finished", self.rig.tick()
        published = self.rig.sink.rows()
        assert [at for at, _ in published] == list(range(self.rows))
        dead = {letter.position for letter in self.rig.ledger.dead_letters()}
        assert {at for at, error in published if error} == dead >= self.poison

    # --- inside ----------------------------------------------------------------------------

    def _newest(self, worker: str) -> tuple[str, int] | None:
        return max((key for key in self.living if key[0] == worker), default=None)

    def _say(self, request: m.Request, lost: bool = False, unanswered: bool = False) -> m.Reply | None:
        """Send; None: lost on the way there, or its answer was, or the coordinator died of it."""
        self.sent.append(request)
        if lost:
            return None
        try:
            reply = self.rig.send(request)
        except Died:
            self.rig.restart()
            return None
        return None if unanswered else reply

    def _end(self, key: tuple[str, int], code: int) -> None:
        if key in self.living:
            del self.living[key]
            self.exits.append(m.Exit(*key, code, "killed by SIGKILL" if code else ""))


TestJobs: Any = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=150, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
