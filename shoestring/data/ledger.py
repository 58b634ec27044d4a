"""Which samples are todo, doing, done or dead: a pure state machine (source: AntDT, dynamic data
sharding; ranges instead of shards, tags, late reports and dead letters are ours).

Positions count samples in the order of use over all epochs. Everything from `frontier` on is todo;
below it stand the returned ranges (todo), the leases (doing) and the dead positions; what is left
is done. So the state costs O(leases + fragments), whatever the size of the data.
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum
from typing import Any, Literal

import msgspec

from shoestring.base.errors import LedgerError
from shoestring.data.ranges import Range, RangeSet, size
from shoestring.data.shuffle import Order, Shuffle

REMEMBERED = 4096


class LedgerSpec(msgspec.Struct, frozen=True):
    """What the ledger is about.

    Attributes:
        samples, epochs, seed, shuffle, shard_size: the order of the samples (`data.shuffle.Order`).
        lease_s: a lease without a tag that is neither finished nor renewed for so long is lost.
        max_attempts: a sample that fails that often is dead.
        max_dead_share: more dead samples than this share of all fail the run.
        delivery: `at_most_once` never hands out again what a lost lease held; it counts as done.
    """

    samples: int
    epochs: int = 1
    seed: int = 0
    shuffle: Shuffle = "samples"
    shard_size: int = 1024
    lease_s: float = 60.0
    max_attempts: int = 3
    max_dead_share: float = 0.01
    delivery: Literal["at_least_once", "at_most_once"] = "at_least_once"

    @property
    def total(self) -> int:
        """Positions in all."""
        return self.samples * self.epochs

    @property
    def order(self) -> Order:
        """Position -> sample."""
        return Order(self.samples, self.epochs, self.seed, self.shuffle, self.shard_size)


class Outcome(Enum):
    """What became of a report of work done."""

    COUNTED = "counted"
    LATE = "late"
    DUPLICATE = "duplicate"


class Lease(msgspec.Struct):
    """Positions that somebody works on. `tag` > 0 ties it to a training step; such a lease does not expire."""

    lease_id: int
    holder: str
    tag: int
    expires_s: float
    ranges: list[Range]


class Letter(msgspec.Struct):
    """A sample that failed: how often, whether for good, and its last error."""

    position: int
    attempts: int
    dead: bool
    error: str


class Counts(msgspec.Struct, frozen=True):
    """Positions by state; they sum to the spec's total."""

    todo: int
    doing: int
    done: int
    dead: int


class Snapshot(msgspec.Struct, frozen=True):
    """The whole state."""

    spec: LedgerSpec
    frontier: int
    next_id: int
    returned: list[Range]
    leases: list[Lease]
    letters: list[Letter]


class Ledger:
    """The state machine. `now` is an argument wherever time matters; nothing is written anywhere.

    Raises:
        LedgerError: from the constructor, for a spec without samples.
    """

    def __init__(self, spec: LedgerSpec) -> None:
        if spec.samples < 1 or spec.epochs < 1:
            raise LedgerError(f"{spec.samples} samples in {spec.epochs} epochs", "give the run some data")
        self.spec = spec
        self._frontier = 0
        self._next_id = 1
        self._returned = RangeSet()
        self._leases: dict[int, Lease] = {}
        self._by_tag: dict[int, set[int]] = {}
        self._letters: dict[int, Letter] = {}
        self._doing = 0
        self._dead = 0
        self._completed: deque[int] = deque(maxlen=REMEMBERED)
        self._earliest_s = math.inf  # no untagged lease expires before
        self.touched_leases: set[int] = set()
        self.touched_letters: set[int] = set()

    # --- work ------------------------------------------------------------------------------

    def lease(self, now: float, holder: str, count: int, tag: int = 0) -> Lease | None:
        """Hand out up to `count` positions, the lowest first; None when nothing is todo."""
        if count < 1:
            raise LedgerError(f"a lease of {count} samples", "ask for one or more")
        ranges = self._returned.take_lowest(count)
        missing = min(count - size(ranges), self.spec.total - self._frontier)
        if missing > 0:
            ranges = _append(ranges, (self._frontier, self._frontier + missing))
            self._frontier += missing
        if not ranges:
            return None
        lease = Lease(self._next_id, holder, tag, now + self.spec.lease_s, ranges)
        self._next_id += 1
        self._insert(lease)
        return lease

    def complete(self, now: float, lease_id: int, holder: str) -> Outcome:
        """The work of a lease is done. A report of a lost lease is LATE and counts nothing."""
        lease = self._leases[lease_id] if lease_id in self._leases else None
        if lease is None or lease.holder != holder:
            return Outcome.DUPLICATE if lease_id in self._completed else Outcome.LATE
        self._remove(lease)
        self._completed.append(lease_id)
        return Outcome.COUNTED

    def release(self, lease_id: int) -> None:
        """Give a lease back unused; its positions are todo again."""
        lease = self._leases[lease_id]
        self._remove(lease)
        self._give_back(lease)

    def fail(self, now: float, lease_id: int, failures: dict[int, str]) -> int:
        """Positions of a lease that failed, with their errors: todo again, or dead after `max_attempts`.

        Positions that are not in the lease (any more) are passed over, so a repeated report counts once.

        Returns:
            How many are dead now because of this report.

        Raises:
            LedgerError: more than `max_dead_share` of all samples are dead.
        """
        lease = self._leases[lease_id]
        held = RangeSet(lease.ranges)
        before = self._dead
        for position, error in sorted(failures.items()):
            if position in held:
                held.remove(position)
                self._doing -= 1
                self._note_failure(position, error)
        lease.ranges = list(held)
        self.touched_leases.add(lease_id)
        if not lease.ranges:
            self._remove(lease)
        if self._dead > self.spec.max_dead_share * self.spec.total:
            raise LedgerError(
                f"{self._dead} of {self.spec.total} samples are dead, more than the share of "
                f"{self.spec.max_dead_share:g} that is allowed; the last error: {error}",
                "look at the dead letters in the run's record; mend the data or raise max_dead_share",
            )
        return self._dead - before

    def renew(self, now: float, holder: str) -> None:
        """A holder lives: its leases last another `lease_s`."""
        for lease in self._leases.values():
            if lease.holder == holder:
                lease.expires_s = now + self.spec.lease_s
                self.touched_leases.add(lease.lease_id)

    def renew_all(self, now: float) -> None:
        """After a restart every holder gets a full lease again: clocks of two boots do not compare."""
        for holder in {lease.holder for lease in self._untagged()}:
            self.renew(now, holder)

    def expire(self, now: float) -> list[Lease]:
        """Take back untagged leases whose time is over."""
        if now < self._earliest_s:
            return []
        lost = [lease for lease in self._untagged() if lease.expires_s <= now]
        self._earliest_s = min((le.expires_s for le in self._untagged() if le.expires_s > now), default=math.inf)
        for lease in lost:
            self._remove(lease)
            self._give_back(lease)
        return lost

    def release_holder(self, holder: str) -> list[Lease]:
        """Take back all leases of one holder."""
        lost = [lease for lease in self._leases.values() if lease.holder == holder]
        for lease in lost:
            self._remove(lease)
            self._give_back(lease)
        return lost

    # --- leases tied to training steps -------------------------------------------------------

    def complete_tags(self, now: float, upto: int) -> int:
        """All leases of steps up to `upto` are done; returns how many positions."""
        return sum(self._finish(lease) for lease in self._tagged(lambda tag: tag <= upto))

    def release_tags(self, now: float, above: int) -> int:
        """All leases of steps after `above` are todo again; returns how many positions."""
        count = 0
        for lease in self._tagged(lambda tag: tag > above):
            count += size(lease.ranges)
            self._remove(lease)
            self._put_back(lease)
        return count

    def has_tags_upto(self, step: int) -> bool:
        """Whether any lease of a step up to `step` is still open."""
        return any(tag <= step for tag in self._by_tag)

    def fail_tagged(self, now: float, tag: int, holder: str, failures: dict[int, str]) -> int:
        """`fail` for the lease of a step and a holder; a lease that is gone counts nothing."""
        ids = self._by_tag[tag] if tag in self._by_tag else set()
        return sum(self.fail(now, i, failures) for i in sorted(ids) if self._leases[i].holder == holder)

    # --- looking -----------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is todo and nobody is at work."""
        return self._frontier == self.spec.total and not len(self._returned) and not self._doing

    def counts(self) -> Counts:
        """Positions by state, in O(1)."""
        done = self._frontier - len(self._returned) - self._doing - self._dead
        return Counts(self.spec.total - self._frontier + len(self._returned), self._doing, done, self._dead)

    def dead_letters(self) -> list[Letter]:
        """The samples that failed for good."""
        return [letter for _, letter in sorted(self._letters.items()) if letter.dead]

    def leases(self) -> list[Lease]:
        """All open leases."""
        return list(self._leases.values())

    def check(self) -> None:
        """Prove that every position has exactly one state.

        Raises:
            LedgerError: it does not hold; this is a bug.
        """
        seen = RangeSet()
        try:
            for start, stop in [*self._returned, *(r for lease in self._leases.values() for r in lease.ranges)]:
                if stop > self._frontier:
                    raise ValueError(f"[{start}, {stop}) is beyond the frontier {self._frontier}")
                seen.add(start, stop)
            for letter in self.dead_letters():
                seen.add(letter.position, letter.position + 1)
        except ValueError as error:
            raise LedgerError(f"the ledger contradicts itself: {error}", "report this as a bug") from error
        counts = self.counts()
        doing = sum(size(lease.ranges) for lease in self._leases.values())
        if doing != counts.doing or len(self.dead_letters()) != counts.dead or min(msgspec.structs.astuple(counts)) < 0:
            raise LedgerError(f"the ledger's counts are wrong: {counts}, {doing} leased", "report this as a bug")

    # --- snapshots ---------------------------------------------------------------------------

    def snapshot(self, in_flight: Literal["doing", "todo"] = "doing") -> Snapshot:
        """The whole state; with `todo`, work in flight counts as not begun (for a checkpoint)."""
        if in_flight == "doing":
            leases = [msgspec.structs.replace(lease, ranges=list(lease.ranges)) for lease in self._leases.values()]
            returned = list(self._returned)
        else:
            leases = []
            open_ranges = [r for lease in self._leases.values() for r in lease.ranges]
            returned = list(RangeSet([*self._returned, *open_ranges]))
        letters = [msgspec.structs.replace(letter) for letter in self._letters.values()]
        return Snapshot(self.spec, self._frontier, self._next_id, returned, leases, letters)

    def snapshot_bytes(self, in_flight: Literal["doing", "todo"] = "doing") -> bytes:
        """The same as msgpack."""
        return msgspec.msgpack.encode(self.snapshot(in_flight))

    @classmethod
    def restore(cls, spec: LedgerSpec, data: bytes | Snapshot) -> Ledger:
        """The ledger of a snapshot.

        Raises:
            LedgerError: it is not a snapshot, or one of other data.
        """
        try:
            snapshot = data if isinstance(data, Snapshot) else msgspec.msgpack.decode(data, type=Snapshot)
        except msgspec.DecodeError as error:
            raise LedgerError(f"this is not a ledger's snapshot: {error}", "take another checkpoint") from error
        if snapshot.spec.order != spec.order:
            raise LedgerError(
                f"the snapshot is of {snapshot.spec.order}, the run of {spec.order}",
                "resume with the data and the seed that the run was started with",
            )
        ledger = cls(spec)
        ledger._frontier, ledger._next_id = snapshot.frontier, snapshot.next_id
        ledger._returned = RangeSet(snapshot.returned)
        for lease in snapshot.leases:
            ledger._insert(msgspec.structs.replace(lease, ranges=list(lease.ranges)))
        ledger._letters = {letter.position: msgspec.structs.replace(letter) for letter in snapshot.letters}
        ledger._dead = sum(letter.dead for letter in snapshot.letters)
        ledger._forget_touched()
        return ledger

    # --- inside ------------------------------------------------------------------------------

    def _insert(self, lease: Lease) -> None:
        self._leases[lease.lease_id] = lease
        if lease.tag:
            self._by_tag.setdefault(lease.tag, set()).add(lease.lease_id)
        else:
            self._earliest_s = min(self._earliest_s, lease.expires_s)
        self._doing += size(lease.ranges)
        self.touched_leases.add(lease.lease_id)

    def _remove(self, lease: Lease) -> None:
        del self._leases[lease.lease_id]
        if lease.tag:
            self._by_tag[lease.tag].discard(lease.lease_id)
            if not self._by_tag[lease.tag]:
                del self._by_tag[lease.tag]
        self._doing -= size(lease.ranges)
        self.touched_leases.add(lease.lease_id)

    def _finish(self, lease: Lease) -> int:
        self._remove(lease)
        self._completed.append(lease.lease_id)
        return size(lease.ranges)

    def _give_back(self, lease: Lease) -> None:
        """What a lost lease held: todo again, or done for ever under at-most-once."""
        if self.spec.delivery == "at_least_once":
            self._put_back(lease)

    def _put_back(self, lease: Lease) -> None:
        for start, stop in lease.ranges:
            self._returned.add(start, stop)

    def _note_failure(self, position: int, error: str) -> None:
        letter = self._letters[position] if position in self._letters else Letter(position, 0, False, "")
        letter.attempts, letter.error = letter.attempts + 1, error
        letter.dead = letter.attempts >= self.spec.max_attempts
        self._letters[position] = letter
        self.touched_letters.add(position)
        if letter.dead:
            self._dead += 1
        else:
            self._returned.add(position, position + 1)

    def _untagged(self) -> list[Lease]:
        return [lease for lease in self._leases.values() if not lease.tag]

    def _tagged(self, chosen: Any) -> list[Lease]:
        return [self._leases[i] for tag in sorted(self._by_tag) if chosen(tag) for i in sorted(self._by_tag[tag])]

    def _forget_touched(self) -> None:
        self.touched_leases.clear()
        self.touched_letters.clear()
        self._returned.touched.clear()


def _append(ranges: list[Range], last: Range) -> list[Range]:
    """Add a range at the end, joined to the one before where they touch."""
    if ranges and ranges[-1][1] == last[0]:
        return [*ranges[:-1], (ranges[-1][0], last[1])]
    return [*ranges, last]
