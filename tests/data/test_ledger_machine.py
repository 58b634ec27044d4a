"""Random operations on a durable ledger beside a plain model of every position, crashes included.

The model knows the state of each position and what became of each lease. The ledger must agree
after every operation, in memory, through a snapshot, and after it was opened anew.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shoestring.data.ledger import Ledger, LedgerSpec, Outcome
from shoestring.data.store import DurableLedger
from shoestring.data.stores import MemoryStore, SqlStore, Store

HOLDERS = ("a", "b", "c")
LEASE_S = 10.0


@dataclass
class Held:
    """A lease as the model sees it."""

    holder: str
    tag: int
    expires_s: float
    positions: set[int]


@dataclass
class Model:
    """Every position by name."""

    todo: set[int]
    held: dict[int, Held] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)
    dead: set[int] = field(default_factory=set)
    counted: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)


class LedgerMachine(RuleBasedStateMachine):
    """Leases, reports, losses, steps, crashes and rollbacks in any order."""

    def store(self) -> Store:
        """The store under the ledger."""
        return MemoryStore()

    @initialize(
        samples=st.integers(1, 40), epochs=st.integers(1, 2), attempts=st.integers(1, 3), once=st.booleans()
    )  # fmt: skip
    def begin(self, samples: int, epochs: int, attempts: int, once: bool) -> None:
        self.spec = LedgerSpec(
            samples, epochs, lease_s=LEASE_S, max_attempts=attempts, max_dead_share=1.0,
            delivery="at_most_once" if once else "at_least_once",
        )  # fmt: skip
        self.once, self.now, self.step = once, 100.0, 0
        self.where = self.store()
        self.ledger = DurableLedger.open(self.where, self.spec)
        self.model = Model(set(range(self.spec.total)))
        self.committed = copy.deepcopy(self.model)
        self.checkpoint = (self.ledger.snapshot_bytes("todo"), copy.deepcopy(self.model))

    # --- operations -----------------------------------------------------------------------------

    @precondition(lambda self: any(held.tag for held in self.model.held.values()))
    @rule(data=st.data(), wrong_holder=st.booleans())
    def give_back(self, data: st.DataObject, wrong_holder: bool) -> None:
        """A late worker returns some of its step; what is not in its leases (any more) is passed over."""
        tags = sorted(i for i, held in self.model.held.items() if held.tag)
        lease_id = data.draw(st.sampled_from(tags))
        held = self.model.held[lease_id]
        some = data.draw(st.sets(st.sampled_from(sorted(self.model.todo | held.positions))))
        holder = "nobody" if wrong_holder else held.holder
        back = set() if wrong_holder else some & held.positions
        ranges = [(p, p + 1) for p in sorted(some)]
        assert self.ledger.give_back_tagged(held.tag, holder, ranges) == len(back)
        assert self.ledger.give_back_tagged(held.tag, holder, ranges) == 0
        held.positions -= back
        self.model.todo |= back
        if not held.positions:
            del self.model.held[lease_id]

    @rule(holder=st.sampled_from(HOLDERS), count=st.integers(1, 15), tagged=st.booleans())
    def lease(self, holder: str, count: int, tagged: bool) -> None:
        self.step += tagged
        lease = self.ledger.lease(self.now, holder, count, self.step if tagged else 0)
        if not self.model.todo:
            assert lease is None
            return
        assert lease is not None
        got = [p for start, stop in lease.ranges for p in range(start, stop)]
        lowest = sorted(self.model.todo)
        assert got == lowest[: len(got)] and 1 <= len(got) <= count
        assert not tagged or len(got) == min(count, len(lowest))
        assert lease.lease_id not in self.model.held.keys() | self.model.counted | self.model.lost
        self.model.held[lease.lease_id] = Held(holder, lease.tag, self.now + LEASE_S, set(got))
        self.model.todo -= set(got)

    @rule(data=st.data(), holder=st.sampled_from(HOLDERS), part=st.booleans())
    def complete(self, data: st.DataObject, holder: str, part: bool) -> None:
        known = sorted(self.model.held.keys() | self.model.counted | self.model.lost) or [7]
        lease_id = data.draw(st.sampled_from(known))
        ranges = None
        if part:
            start = data.draw(st.integers(0, self.spec.total - 1))
            ranges = [(start, data.draw(st.integers(start + 1, self.spec.total)))]
        outcome = self.ledger.complete(self.now, lease_id, holder, ranges)
        assert outcome is self._expected(lease_id, holder, ranges)

    def _expected(self, lease_id: int, holder: str, ranges: list[tuple[int, int]] | None) -> Outcome:
        model = self.model
        if lease_id not in model.held:
            return Outcome.DUPLICATE if lease_id in model.counted else Outcome.LATE
        held = model.held[lease_id]
        if held.holder != holder:
            return Outcome.LATE
        if not held.tag and held.expires_s <= self.now:
            self._lose(lease_id)
            return Outcome.LATE
        reported = held.positions if ranges is None else held.positions & set(range(*ranges[0]))
        if not reported:
            return Outcome.DUPLICATE
        model.done |= reported
        held.positions = held.positions - reported
        self._drop_if_empty(lease_id)
        return Outcome.COUNTED

    @rule(data=st.data(), times=st.integers(1, 2))
    def fail(self, data: st.DataObject, times: int) -> None:
        if not self.model.held:
            return
        lease_id = data.draw(st.sampled_from(sorted(self.model.held)))
        held = self.model.held[lease_id]
        bad = data.draw(st.sets(st.sampled_from(sorted(held.positions)), min_size=1, max_size=3))
        for _ in range(times):  # a report that comes twice counts once
            if held.tag:
                self.ledger.fail_tagged(self.now, held.tag, held.holder, dict.fromkeys(bad, "bad"))
            else:
                self.ledger.fail(self.now, lease_id, dict.fromkeys(bad, "bad"))
        held.positions -= bad
        self._file(bad)
        self._drop_if_empty(lease_id)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.model.held:
            lease_id = data.draw(st.sampled_from(sorted(self.model.held)))
            self.ledger.release(lease_id)
            self.model.lost.add(lease_id)
            self.model.todo |= self.model.held.pop(lease_id).positions

    @rule(seconds=st.floats(0.0, 12.0), renew=st.sampled_from(("", *HOLDERS)))
    def pass_time(self, seconds: float, renew: str) -> None:
        self.now += seconds
        for held in self.model.held.values():
            held.expires_s = self.now + LEASE_S if math.isinf(held.expires_s) else held.expires_s
        expired = [i for i, held in self.model.held.items() if not held.tag and held.expires_s <= self.now]
        assert sorted(lease.lease_id for lease in self.ledger.expire(self.now)) == sorted(expired)
        for lease_id in expired:
            self._lose(lease_id)
        self.ledger.renew(self.now, renew)
        for held in self.model.held.values():
            if held.holder == renew and not held.tag:
                held.expires_s = self.now + LEASE_S

    @rule(holder=st.sampled_from(HOLDERS))
    def holder_dies(self, holder: str) -> None:
        gone = [i for i, held in self.model.held.items() if held.holder == holder and not held.tag]
        assert sorted(lease.lease_id for lease in self.ledger.release_holder(holder)) == sorted(gone)
        for lease_id in gone:
            self._lose(lease_id)

    @rule(back=st.integers(0, 4), keep=st.booleans())
    def settle_steps(self, back: int, keep: bool) -> None:
        step = self.step - back
        tags = {i: held.tag for i, held in self.model.held.items() if held.tag}
        assert self.ledger.has_tags_upto(step) == any(tag <= step for tag in tags.values())
        if keep:
            self.ledger.complete_tags(self.now, step)
        else:
            self.ledger.release_tags(self.now, step)
        for lease_id in [i for i, tag in tags.items() if (tag <= step if keep else tag > step)]:
            positions = self.model.held.pop(lease_id).positions
            (self.model.counted if keep else self.model.lost).add(lease_id)
            (self.model.done if keep or self.once else self.model.todo).update(positions)

    # --- going back, and crashes ------------------------------------------------------------------

    @rule()
    def save_checkpoint(self) -> None:
        model = copy.deepcopy(self.model)
        for held in model.held.values():
            model.todo |= held.positions
        model.held.clear()
        self.checkpoint = (self.ledger.snapshot_bytes("todo"), model)

    @rule(to_start=st.booleans())
    def roll_back(self, to_start: bool) -> None:
        every_id = self.model.held.keys() | self.model.counted | self.model.lost
        if to_start:
            self.ledger.reset()
            self.model = Model(set(range(self.spec.total)))
        else:
            self.ledger.replace(self.checkpoint[0])
            self.model = copy.deepcopy(self.checkpoint[1])
        # Nothing that was reported before counts in this past.
        self.model.lost, self.model.counted = every_id | self.model.lost | self.model.counted, set()

    @rule()
    def commit(self) -> None:
        self.ledger.commit()
        self.committed = copy.deepcopy(self.model)
        assert not self.ledger.commit()

    @rule()
    def crash(self) -> None:
        """What was not committed is gone, and nothing else."""
        self.ledger = DurableLedger.open(self.where, self.spec)
        self.model = copy.deepcopy(self.committed)
        for held in self.model.held.values():
            held.expires_s = math.inf

    @precondition(lambda self: hasattr(self, "ledger"))
    @invariant()
    def agrees(self) -> None:
        self.ledger.check()
        self._same(self.ledger)
        data = self.ledger.snapshot_bytes()
        restored = Ledger.restore(self.spec, data)
        self._same(restored)
        assert restored.snapshot_bytes() == data

    def teardown(self) -> None:
        """The end of an example."""
        if hasattr(self, "where"):
            self.where.close()

    # --- the model ----------------------------------------------------------------------------------

    def _same(self, ledger: Ledger) -> None:
        model, counts = self.model, ledger.counts()
        held = {le.lease_id: {p for a, b in le.ranges for p in range(a, b)} for le in ledger.leases()}
        assert held == {i: h.positions for i, h in model.held.items()}
        assert {letter.position for letter in ledger.dead_letters()} == model.dead
        state = ledger.snapshot()
        todo = {p for a, b in [*state.returned, (state.frontier, self.spec.total)] for p in range(a, b)}
        assert todo == model.todo
        doing = sum(map(len, held.values()))
        assert (counts.todo, counts.doing, counts.dead) == (len(model.todo), doing, len(model.dead))
        assert counts.done == len(model.done) == self.spec.total - counts.todo - doing - counts.dead
        assert ledger.finished == (not model.todo and not doing)

    def _lose(self, lease_id: int) -> None:
        positions = self.model.held.pop(lease_id).positions
        self.model.lost.add(lease_id)
        if self.once:
            self.model.done |= positions
        else:
            self._file(positions)

    def _file(self, failed: set[int]) -> None:
        """Failed or lost positions are todo or dead; the ledger says which, its letters why."""
        letters = {letter.position: letter for letter in self.ledger.dead_letters()}
        for position in failed:
            if position in letters:
                assert letters[position].attempts >= (1 if self.once else self.spec.max_attempts)
                assert letters[position].error
                self.model.dead.add(position)
            else:
                self.model.todo.add(position)

    def _drop_if_empty(self, lease_id: int) -> None:
        if not self.model.held[lease_id].positions:
            del self.model.held[lease_id]
            self.model.counted.add(lease_id)


class SqlLedgerMachine(LedgerMachine):
    """The same on SQLite."""

    def store(self) -> Store:
        """A database in memory: it lives as long as the store."""
        return SqlStore("sqlite://")


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=80, stateful_step_count=40)
TestSqlLedger = SqlLedgerMachine.TestCase
TestSqlLedger.settings = settings(max_examples=15, stateful_step_count=40)
