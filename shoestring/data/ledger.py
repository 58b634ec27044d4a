"""Which samples are todo, doing, done or dead: a pure state machine (source: AntDT, dynamic data
sharding; ranges instead of shards, tags, late reports, suspects and dead letters are ours).

Positions count samples in the order of use over all epochs. Everything from `frontier` on is todo;
below it stand the returned ranges (todo), the leases (doing) and the dead positions; what is left
is done. So the state costs O(leases + fragments), whatever the size of the data.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import msgspec

from shoestring.base.errors import LedgerError
from shoestring.data.blame import Blame
from shoestring.data.ledger_state import (
    BUG,
    Counts,
    Head,
    Lease,
    LedgerSpec,
    Letter,
    Outcome,
    Snapshot,
    decode_snapshot,
    discard,
    disjoint,
    encode_snapshot,
)
from shoestring.data.ranges import Range, RangeSet, append, size

__all__ = ["Counts", "Lease", "Ledger", "LedgerSpec", "Letter", "Outcome", "Snapshot"]

REMEMBERED_LOSSES = 10_000

InFlight = Literal["doing", "todo"]


class Ledger:
    """The state machine. `now` is an argument wherever time matters; nothing is written anywhere.

    Raises:
        LedgerError: from the constructor, for a spec without samples or attempts.
    """

    def __init__(self, spec: LedgerSpec) -> None:
        if spec.samples < 1 or spec.epochs < 1:
            raise LedgerError(f"{spec.samples} samples in {spec.epochs} epochs", "give the run some data")
        if spec.max_attempts < 1 or not spec.lease_s > 0 or not 0 <= spec.max_dead_share <= 1:
            raise LedgerError(
                f"a ledger with max_attempts {spec.max_attempts}, lease_s {spec.lease_s:g} and "
                f"max_dead_share {spec.max_dead_share:g}",
                "give at least one attempt, a time above 0 and a share from 0 to 1",
            )
        self.spec = spec
        self._start(Snapshot(spec, Head(), [], [], []))

    # --- work ------------------------------------------------------------------------------

    def lease(self, now: float, holder: str, count: int, tag: int = 0) -> Lease | None:
        """Hand out up to `count` positions, the lowest first; None when nothing is todo.

        A lease with a tag gets exactly `count` positions where that many are todo. One without gets
        fewer where it meets a suspect: what was lost `max_attempts` times with its holder is handed
        out alone, and by halves, so that one bad sample does not take its neighbours along.

        Raises:
            LedgerError: `count` is below 1, or too many samples are dead.
        """
        self._ready()
        if count < 1 or tag < 0:
            raise LedgerError(f"a lease of {count} samples, tag {tag}", "ask for one or more, tag 0 or above")
        self._refuse_if_too_many_are_dead()
        ranges = self._take(count) if tag else self._take_apart(count)
        if not ranges:
            return None
        lease = Lease(self._next_id, holder, tag, now + self.spec.lease_s, ranges)
        self._next_id += 1
        self._insert(lease)
        return lease

    def complete(
        self, now: float, lease_id: int, holder: str, ranges: Iterable[Range] | None = None
    ) -> Outcome:
        """The work of a lease is done, or of those `ranges` of it; positions outside of it are passed over.

        Returns:
            COUNTED: its positions are done now. DUPLICATE: they were counted before. LATE: the lease
            was lost, given back, has expired or is not the holder's: nothing counts.

        Raises:
            LedgerError: `ranges` overlap or one is empty.
        """
        self._ready()
        lease = self._leases[lease_id] if lease_id in self._leases else None
        if lease is None:
            return Outcome.LATE if self._is_lost(lease_id) else Outcome.DUPLICATE
        if lease.holder != holder:
            return Outcome.LATE
        if not lease.tag and lease.expires_s <= now:
            self._lose(lease, "its time was over")
            return Outcome.LATE
        if ranges is None:
            self._finish(lease)
            return Outcome.COUNTED
        held = RangeSet(lease.ranges)
        done = [part for start, stop in disjoint(ranges) for part in held.overlap(start, stop)]
        if not done:
            return Outcome.DUPLICATE
        for start, stop in done:
            held.remove(start, stop)
        self._settle(done)
        self._shrink(lease, list(held))
        return Outcome.COUNTED

    def release(self, lease_id: int) -> None:
        """Give a lease back unused; its positions are todo again. One that is gone is passed over."""
        self._ready()
        if lease_id in self._leases:
            self._give_back(self._leases[lease_id])

    def fail(self, now: float, lease_id: int, failures: Mapping[int, str]) -> int:
        """Positions of a lease that failed, with their errors: todo again, or dead after `max_attempts`.

        Positions that are not in the lease (any more) are passed over, so a repeated report counts
        once, and so is a lease that is gone. At most once means one attempt.

        Returns:
            How many are dead now because of this report.

        Raises:
            LedgerError: more than `max_dead_share` of all samples are dead.
        """
        self._ready()
        if lease_id not in self._leases:
            return 0
        lease = self._leases[lease_id]
        held = RangeSet(lease.ranges)
        before = self._blame.dead
        for position, error in sorted(failures.items()):
            if position in held:
                held.remove(position, position + 1)
                self._doing -= 1
                if not self._blame.failed(position, error):
                    self._returned.add(position, position + 1)
        self._shrink(lease, list(held))
        self._refuse_if_too_many_are_dead()
        return self._blame.dead - before

    def renew(self, now: float, holder: str) -> int:
        """A holder lives: its leases last another `lease_s`; returns how many there are."""
        self._ready()
        ids = [i for i in sorted(self._ids_of(holder)) if not self._leases[i].tag]
        for lease_id in ids:
            self._leases[lease_id].expires_s = now + self.spec.lease_s
            self._due.move_to_end(lease_id)
        return len(ids)

    def renew_all(self, now: float) -> None:
        """After a restart every holder gets a full lease again: clocks of two boots do not compare."""
        for holder in sorted(self._by_holder):
            self.renew(now, holder)

    def expire(self, now: float) -> list[Lease]:
        """Take back untagged leases whose time is over, and count the loss against their positions."""
        self._ready()
        if self._clockless:
            self._start_clocks(now)
        lost = []
        while self._due and self._leases[next(iter(self._due))].expires_s <= now:
            lease = self._leases[next(iter(self._due))]
            self._lose(lease, "its time was over")
            lost.append(lease)
        return lost

    def release_holder(self, holder: str) -> list[Lease]:
        """A holder is gone: take back its untagged leases, and count the loss against their positions.

        Leases of training steps stay: others may have applied the step, its round settles them.
        """
        self._ready()
        ids = sorted(self._ids_of(holder))
        lost = [self._leases[i] for i in ids if not self._leases[i].tag]
        for lease in lost:
            self._lose(lease, "its holder was gone")
        return lost

    # --- leases tied to training steps -------------------------------------------------------

    def complete_tags(self, now: float, upto: int) -> int:
        """All leases of steps up to `upto` are done; returns how many positions."""
        self._ready()
        return sum(self._finish(lease) for lease in self._tagged(lambda tag: tag <= upto))

    def release_tags(self, now: float, above: int) -> int:
        """All leases of steps after `above` are todo again; returns how many positions.

        No loss is counted: it was the round that broke, not these samples. At most once skips them.
        """
        self._ready()
        count = 0
        for lease in self._tagged(lambda tag: tag > above):
            count += size(lease.ranges)
            if self.spec.delivery == "at_most_once":
                self._skip(lease)
            else:
                self._give_back(lease)
        return count

    def has_tags_upto(self, step: int) -> bool:
        """Whether any lease of a step up to `step` is still open."""
        return any(tag <= step for tag in self._by_tag)

    def fail_tagged(self, now: float, tag: int, holder: str, failures: Mapping[int, str]) -> int:
        """`fail` for the leases of a step and a holder; a lease that is gone counts nothing."""
        ids = sorted(self._by_tag[tag]) if tag in self._by_tag else []
        return sum(self.fail(now, i, failures) for i in ids if self._leases[i].holder == holder)

    def give_back_tagged(self, tag: int, holder: str, ranges: Iterable[Range]) -> int:
        """Positions of a step's leases that their holder has not used, and will not: todo again.

        No attempt is counted, also under at most once. What is not in these leases (any more) is passed over,
        so a repeated call changes nothing.

        Returns:
            How many positions.
        """
        self._ready()
        back, count = disjoint(ranges), 0
        for lease_id in sorted(self._by_tag[tag]) if tag in self._by_tag else []:
            lease = self._leases[lease_id]
            if lease.holder != holder:
                continue
            held = RangeSet(lease.ranges)
            for start, stop in [part for one in back for part in held.overlap(*one)]:
                held.remove(start, stop)
                self._returned.add(start, stop)
                self._doing -= stop - start
                count += stop - start
            self._shrink(lease, list(held))
        return count

    # --- looking -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is todo and nobody is at work."""
        return self._frontier == self.spec.total and not len(self._returned) and not self._doing

    def counts(self) -> Counts:
        """Positions by state, in O(1)."""
        todo = self.spec.total - self._frontier + len(self._returned)
        done = self._frontier - len(self._returned) - self._doing - self._blame.dead
        return Counts(todo, self._doing, done, self._blame.dead, self._skipped)

    def is_alone(self, position: int | None = None) -> bool:
        """Whether a position (None: the next one todo) was lost so often that it is handed out alone."""
        first, _ = self._returned.lowest or (self._frontier, self.spec.total)
        return self._blame.is_alone(first if position is None else position)

    def dead_letters(self) -> list[Letter]:
        """The samples that failed for good."""
        return [letter for _, letter in sorted(self._blame.letters.items()) if letter.dead]

    def leases(self) -> list[Lease]:
        """All open leases."""
        return list(self._leases.values())

    def check(self) -> None:
        """Prove that every position has exactly one state, and that all indexes agree.

        Raises:
            LedgerError: it does not hold; this is a bug, or the store is damaged.
        """
        held = [r for lease in self._leases.values() for r in lease.ranges]
        dead = [(letter.position, letter.position + 1) for letter in self.dead_letters()]
        try:
            open_ = RangeSet([*self._returned, *held])
            known = RangeSet([*open_, *dead])
        except ValueError as error:
            raise LedgerError(f"the ledger contradicts itself: {error}", BUG) from error
        highest = max((stop for _, stop in known), default=0)
        if not highest <= self._frontier <= self.spec.total:
            raise LedgerError(f"the ledger knows positions beyond its frontier {self._frontier}", BUG)
        counts = self.counts()
        if size(held) != counts.doing or len(dead) != counts.dead or min(msgspec.structs.astuple(counts)) < 0:
            raise LedgerError(f"the ledger's counts are wrong: {counts}, {size(held)} leased", BUG)
        pending = [(p, p + 1) for p, letter in self._blame.letters.items() if not letter.dead]
        pending += [(start, stop) for start, stop, _ in self._blame.suspects]
        for start, stop in pending:
            below = min(stop, self._frontier)
            if size(open_.overlap(start, below)) != max(0, below - start):
                raise LedgerError(f"the ledger blames [{start}, {stop}), which is done", BUG)
        self._check_indexes()

    # --- snapshots ---------------------------------------------------------------------------

    def snapshot(self, in_flight: InFlight = "doing") -> Snapshot:
        """The whole state; with `todo`, work in flight counts as not begun (for a checkpoint).

        It says nothing of time: clocks of two boots do not compare.
        """
        replace = msgspec.structs.replace
        letters = [replace(letter) for _, letter in sorted(self._blame.letters.items())]
        suspects = list(self._blame.suspects)
        if in_flight == "doing":
            head = Head(self._frontier, self._next_id, self._horizon, self._skipped)
            held = self._leases.values()
            leases = [replace(lease, ranges=list(lease.ranges), expires_s=math.inf) for lease in held]
            returned, lost = list(self._returned), list(self._lost)
            return Snapshot(self.spec, head, returned, leases, letters, suspects, lost)
        head = Head(self._frontier, self._next_id, self._next_id, self._skipped)
        open_ranges = [r for lease in self._leases.values() for r in lease.ranges]
        returned = list(RangeSet([*self._returned, *open_ranges]))
        return Snapshot(self.spec, head, returned, [], letters, suspects)

    def snapshot_bytes(self, in_flight: InFlight = "doing") -> bytes:
        """The same as compressed msgpack."""
        return encode_snapshot(self.snapshot(in_flight))

    @classmethod
    def restore(cls, spec: LedgerSpec, data: bytes | Snapshot) -> Ledger:
        """The ledger of a snapshot. Leases get their full time again, from the first `expire` on.

        Raises:
            LedgerError: it is not a snapshot, is damaged, or is one of other data.
        """
        snapshot = data if isinstance(data, Snapshot) else decode_snapshot(data)
        ledger = Ledger(spec)
        ledger._adopt(snapshot)
        return ledger

    # --- inside: the whole state ---------------------------------------------------------------

    def _ready(self) -> None:
        """Called before every operation; the durable ledger refuses here once its store has failed."""

    def _start(self, snapshot: Snapshot) -> None:
        head = snapshot.head
        self._frontier, self._next_id, self._horizon = head.frontier, head.next_id, head.horizon
        self._skipped = head.skipped
        self._returned = RangeSet(snapshot.returned)
        self._lost = RangeSet(snapshot.lost)
        self._blame = Blame(self.spec, snapshot.letters, snapshot.suspects)
        self._doing = 0
        self._clockless = bool(snapshot.leases)
        self._leases: dict[int, Lease] = {}
        self._by_tag: dict[int, set[int]] = {}
        self._by_holder: dict[str, set[int]] = {}
        self._due: OrderedDict[int, None] = OrderedDict()  # untagged leases, the first to expire first
        self.touched_leases: set[int] | None = None
        for lease in snapshot.leases:
            self._insert(msgspec.structs.replace(lease, ranges=list(lease.ranges)))

    def _adopt(self, snapshot: Snapshot) -> None:
        if snapshot.spec.identity != self.spec.identity:
            raise LedgerError(
                f"the ledger is about {snapshot.spec.identity}, the run about {self.spec.identity}",
                "resume with the data, the seed and the delivery that the run was started with",
            )
        try:
            self._start(snapshot)
        except ValueError as error:
            raise LedgerError(f"the ledger's state is damaged: {error}", "take another checkpoint") from error
        self.check()

    def _start_clocks(self, now: float) -> None:
        """Leases of a snapshot expire a full time from now: nobody could renew them meanwhile."""
        self._clockless = False
        for lease_id in [i for i in self._due if self._leases[i].expires_s == math.inf]:
            self._leases[lease_id].expires_s = now + self.spec.lease_s
            self._due.move_to_end(lease_id)

    def _check_indexes(self) -> None:
        for lease_id, lease in self._leases.items():
            filed = lease_id in self._ids_of(lease.holder)
            timed = lease_id in self._due if not lease.tag else lease_id in self._by_tag[lease.tag]
            if not (filed and timed and lease.ranges and lease_id < self._next_id):
                raise LedgerError(f"the ledger has misfiled {lease}", BUG)
        by_holder = sum(map(len, self._by_holder.values()))
        by_time = len(self._due) + sum(map(len, self._by_tag.values()))
        if not len(self._leases) == by_holder == by_time:
            raise LedgerError("the ledger has filed leases that are gone", BUG)

    # --- inside: taking ------------------------------------------------------------------------

    def _take(self, count: int, below: int | None = None) -> list[Range]:
        ranges = self._returned.take_lowest(count, below)
        limit = self.spec.total if below is None else min(below, self.spec.total)
        missing = min(count - size(ranges), limit - self._frontier)
        # Behind the frontier only when nothing lower is left, for `below` may have hidden some.
        if missing > 0 and not len(self._returned):
            ranges = append(ranges, (self._frontier, self._frontier + missing))
            self._frontier += missing
        return ranges

    def _take_apart(self, count: int) -> list[Range]:
        """As `_take`, but what is suspect comes alone."""
        first, last = self._returned.lowest or (self._frontier, self.spec.total)
        start, stop = self._blame.next_alone(first) or (self.spec.total + 1, 0)
        if start > first:
            return self._take(count, below=start)
        return self._take(min(count, min(stop, last) - first))

    # --- inside: leases --------------------------------------------------------------------------

    def _ids_of(self, holder: str) -> set[int]:
        return self._by_holder[holder] if holder in self._by_holder else set()

    def _insert(self, lease: Lease) -> None:
        self._leases[lease.lease_id] = lease
        self._by_holder.setdefault(lease.holder, set()).add(lease.lease_id)
        if lease.tag:
            self._by_tag.setdefault(lease.tag, set()).add(lease.lease_id)
        else:
            self._due[lease.lease_id] = None
        self._doing += size(lease.ranges)
        self._touch(lease)

    def _remove(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        discard(self._by_holder, lease.holder, lease.lease_id)
        if lease.tag:
            discard(self._by_tag, lease.tag, lease.lease_id)
        else:
            del self._due[lease.lease_id]
        self._doing -= size(lease.ranges)
        self._touch(lease)

    def _shrink(self, lease: Lease, rest: list[Range]) -> None:
        """`rest` is still leased; who took the difference has counted it."""
        lease.ranges = rest
        self._touch(lease)
        if not rest:
            self._remove(lease)

    def _touch(self, lease: Lease) -> None:
        if self.touched_leases is not None:
            self.touched_leases.add(lease.lease_id)

    def _finish(self, lease: Lease) -> int:
        self._remove(lease)
        self._blame.absolve(lease.ranges)
        return size(lease.ranges)

    def _settle(self, done: list[Range]) -> None:
        self._doing -= size(done)
        self._blame.absolve(done)

    def _give_back(self, lease: Lease) -> None:
        self._remove(lease)
        self._remember_lost(lease.lease_id)
        for start, stop in lease.ranges:
            self._returned.add(start, stop)

    def _skip(self, lease: Lease) -> None:
        """At most once: what the lease held may have been used, so nobody gets it again."""
        self._remove(lease)
        self._remember_lost(lease.lease_id)
        self._skipped += size(lease.ranges)
        self._blame.absolve(lease.ranges)

    def _lose(self, lease: Lease, how: str) -> None:
        if self.spec.delivery == "at_most_once":
            self._skip(lease)
            return
        self._give_back(lease)
        for start, stop in lease.ranges:
            for position in self._blame.lost(start, stop, f"lost with {lease.holder}: {how}"):
                self._returned.remove(position, position + 1)

    def _remember_lost(self, lease_id: int) -> None:
        self._lost.add(lease_id, lease_id + 1)
        while self._lost.fragments > REMEMBERED_LOSSES and self._lost.lowest is not None:
            start, stop = self._lost.lowest
            self._lost.remove(start, stop)
            self._horizon = max(self._horizon, stop)

    def _is_lost(self, lease_id: int) -> bool:
        return lease_id < self._horizon or lease_id >= self._next_id or lease_id in self._lost

    def _tagged(self, chosen: Callable[[int], bool]) -> list[Lease]:
        tags = [tag for tag in sorted(self._by_tag) if chosen(tag)]
        return [self._leases[i] for tag in tags for i in sorted(self._by_tag[tag])]

    def _refuse_if_too_many_are_dead(self) -> None:
        if not self._blame.too_many:
            return
        last = self.dead_letters()[-1]
        raise LedgerError(
            f"{self._blame.dead} of {self.spec.total} samples are dead, more than the share of "
            f"{self.spec.max_dead_share:g} that is allowed; position {last.position}: {last.error}",
            "look at the dead letters; mend the data or raise max_dead_share, then resume the run",
        )
