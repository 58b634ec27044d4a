"""What the ledger is about, what it answers, and its state as bytes (source: ours)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable
from enum import Enum
from typing import Literal, TypeVar

import msgspec

from shoestring.base.errors import LedgerError
from shoestring.data.ranges import Marked, Range, RangeSet
from shoestring.data.shuffle import Order, Shuffle

FORMAT = 2
BUG = "report this as a bug"

K = TypeVar("K")


class LedgerSpec(msgspec.Struct, frozen=True):
    """What the ledger is about.

    Attributes:
        samples, epochs, seed, shuffle, shard_size: the order of the samples (`data.shuffle.Order`).
        lease_s: a lease without a tag that is neither finished nor renewed for so long is lost.
        max_attempts: a sample that fails that often is dead.
        max_dead_share: more dead samples than this share of all fail the run.
        delivery: `at_most_once` never hands out again what a lost lease held or what failed.
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

    @property
    def identity(self) -> tuple[Order, str]:
        """What a stored ledger has to share with a run that goes on with it; the rest may change."""
        return self.order, self.delivery


class Outcome(Enum):
    """What became of a report of work done."""

    COUNTED = "counted"
    LATE = "late"
    DUPLICATE = "duplicate"


class Lease(msgspec.Struct):
    """Positions that somebody works on. `tag` > 0 ties it to a training step: it does not expire."""

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
    """Positions by state: todo, doing, done and dead sum to the spec's total.

    `skipped` is the part of `done` that lost leases held under at-most-once: used perhaps, or not.
    """

    todo: int
    doing: int
    done: int
    dead: int
    skipped: int = 0


class Head(msgspec.Struct, frozen=True):
    """The scalars of the state.

    Attributes:
        frontier: every position from here on is todo.
        next_id: number of the next lease.
        horizon: leases below this number that are not in flight never count any more.
        skipped: see `Counts`.
    """

    frontier: int = 0
    next_id: int = 1
    horizon: int = 1
    skipped: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """The whole state.

    Attributes:
        returned: todo below the frontier.
        suspects: (start, stop, n): what was lost n times with its holder and is not done yet.
        lost: numbers of leases that were lost or given back, as ranges.
    """

    spec: LedgerSpec
    head: Head
    returned: list[Range]
    leases: list[Lease]
    letters: list[Letter]
    suspects: list[Marked] = []
    lost: list[Range] = []

    @property
    def frontier(self) -> int:
        """Every position from here on is todo."""
        return self.head.frontier


class _Packed(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot with numbers as differences, which compress."""

    format: int
    spec: LedgerSpec
    head: Head
    returned: list[int]
    leases: list[tuple[int, str, int, list[int]]]
    letters: list[Letter]
    suspects: list[Marked]
    lost: list[int]


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """The snapshot as compressed msgpack."""
    leases = [(le.lease_id, le.holder, le.tag, _pack(le.ranges)) for le in snapshot.leases]
    packed = _Packed(
        FORMAT, snapshot.spec, snapshot.head, _pack(snapshot.returned), leases, snapshot.letters,
        snapshot.suspects, _pack(snapshot.lost),
    )  # fmt: skip
    return zlib.compress(msgspec.msgpack.encode(packed), 1)


def decode_snapshot(data: bytes) -> Snapshot:
    """The snapshot of `encode_snapshot`.

    Raises:
        LedgerError: it is none, or damaged.
    """
    try:
        packed = msgspec.msgpack.decode(zlib.decompress(data), type=_Packed)
    except (zlib.error, msgspec.DecodeError) as error:
        raise LedgerError(f"this is not a ledger's snapshot: {error}", "take another checkpoint") from error
    if packed.format != FORMAT:
        raise LedgerError(
            f"the ledger's snapshot has format {packed.format}, this version reads {FORMAT}",
            "go on with the version that wrote it",
        )
    leases = [Lease(i, who, tag, math.inf, _unpack(flat)) for i, who, tag, flat in packed.leases]
    return Snapshot(
        packed.spec, packed.head, _unpack(packed.returned), leases, packed.letters, packed.suspects,
        _unpack(packed.lost),
    )  # fmt: skip


def _pack(ranges: Iterable[Range]) -> list[int]:
    """gap, length, gap, length, ...: small numbers that repeat, where positions do not."""
    flat: list[int] = []
    at = 0
    for start, stop in ranges:
        flat.append(start - at)
        flat.append(stop - start)
        at = stop
    return flat


def _unpack(flat: list[int]) -> list[Range]:
    ranges: list[Range] = []
    at = 0
    for gap, length in zip(flat[::2], flat[1::2], strict=True):
        ranges.append((at + gap, at + gap + length))
        at += gap + length
    return ranges


def disjoint(ranges: Iterable[Range]) -> RangeSet:
    """A report of ranges.

    Raises:
        LedgerError: they overlap.
    """
    try:
        return RangeSet(ranges)
    except ValueError as error:
        raise LedgerError(f"a report of ranges that cannot be: {error}", BUG) from error


def discard(index: dict[K, set[int]], key: K, lease_id: int) -> None:
    """Take an entry out of an index, and its key with the last one."""
    index[key].discard(lease_id)
    if not index[key]:
        del index[key]
