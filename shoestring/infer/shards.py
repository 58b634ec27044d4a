"""The shards that a worker has in hand: what each still misses, when it can be written, and which segments of
shared memory are still needed (source: ours). Pure: no clock, no process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from shoestring.data.output_state import Ranges
from shoestring.data.ranges import size
from shoestring.infer.config import ROWS
from shoestring.infer.regroup import Back, Key, Slice, runs_between
from shoestring.infer.wire import Chunk, Piece, Write


class HeldSegments:
    """How many need a segment, and how much memory all of them hold.

    Args:
        remove: takes a segment off the machine, by name.

    Attributes:
        held_bytes: of all segments.
    """

    def __init__(self, remove: Callable[[str], None]) -> None:
        self._remove = remove
        self._holders: Counter[str] = Counter()
        self._bytes: dict[str, int] = {}
        self.held_bytes = 0

    def made(self, name: str, size_bytes: int) -> None:
        """There is a segment; nobody needs it yet: `hold` it, or `release` it at once."""
        self._bytes[name] = size_bytes
        self.held_bytes += size_bytes

    def hold(self, names: Iterable[str]) -> None:
        """Somebody needs these."""
        self._holders.update(names)

    def release(self, names: Iterable[str]) -> None:
        """Somebody needs these no longer; who is needed by nobody is removed."""
        for name in names:
            self._holders[name] -= 1
            if self._holders[name] <= 0:
                del self._holders[name]
                self._drop(name)

    def discard_unheld(self, name: str) -> None:
        """Remove a segment where nobody needs it."""
        if name not in self._holders:
            self._drop(name)

    def clear(self) -> None:
        """Remove all."""
        for name in list(self._bytes):
            self._drop(name)
        self._holders.clear()

    def _drop(self, name: str) -> None:
        if name in self._bytes:
            self.held_bytes -= self._bytes.pop(name)
            self._remove(name)


@dataclass(frozen=True, slots=True)
class Read:
    """Rows for a loader: of one shard, half-open ranges of positions, `rows` in all.

    `offset`: rows that a loader reads of this shard before these; verdicts are none of them.
    """

    lease_id: int
    offset: int
    ranges: Ranges
    rows: int

    def cut(self, count: int) -> tuple[Read, Read]:
        """The first `count` rows, and the rest."""
        first, second = cut_ranges(self.ranges, count)
        return (
            Read(self.lease_id, self.offset, first, count),
            Read(self.lease_id, self.offset + count, second, self.rows - count),
        )


@dataclass
class InHand:
    """A shard.

    Attributes:
        verdicts: position -> error, of rows that go through no stage.
        todo: rows that no loader was given yet.
        unloaded: rows that are not in a chunk yet, todo or in work.
        open_items: items that some stage still has to answer.
        chunks, pieces: by their keys.
        sources: answer's segment -> (stage, key) of the shard's pieces with it.
        held: segments that it needs until it is written.
        passing: segments that only stages further down need -> their items that these have not answered yet.
        begun: whether a stage has had any of its rows: reading is quickly done again by others.
        written: whether it was handed to a writer.
    """

    lease_id: int
    ranges: Ranges
    verdicts: dict[int, str]
    todo: Read
    unloaded: int
    open_items: int = 0
    chunks: dict[Key, Chunk] = field(default_factory=dict)
    pieces: dict[str, dict[Key, Piece]] = field(default_factory=dict)
    sources: dict[str, list[tuple[str, Key]]] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    passing: dict[str, int] = field(default_factory=dict)
    begun: bool = False
    written: bool = False

    @property
    def rows(self) -> int:
        """Of it."""
        return size(self.ranges)

    @property
    def complete(self) -> bool:
        """Whether all its rows went through everything."""
        return not self.unloaded and not self.open_items


Fresh = tuple[str, Slice]
"""Items that have become ready for a stage."""


class Shards:
    """All shards in hand.

    Args:
        after: stage -> the one that its items come from, or `rows`; parents before children.
        kept: stages whose answers the writer needs.
        segments: of this worker.

    What belongs to a shard that was dropped meanwhile is passed over.
    """

    def __init__(self, after: Mapping[str, str], kept: Iterable[str], segments: HeldSegments) -> None:
        self._children: dict[str, list[str]] = {name: [] for name in (ROWS, *after)}
        for name, parent in after.items():
            self._children[parent].append(name)
        self._stages = tuple(after)
        self._kept = frozenset(kept)
        self._segments = segments
        self._hand: dict[int, InHand] = {}

    def __len__(self) -> int:
        return len(self._hand)

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._hand

    def __iter__(self) -> Iterator[InHand]:
        """The one that came first first."""
        return iter(self._hand.values())

    @property
    def rows(self) -> int:
        """In hand."""
        return sum(one.rows for one in self._hand.values())

    # --- in and out --------------------------------------------------------------------------------

    def add(self, lease_id: int, ranges: Ranges, verdicts: Mapping[int, str]) -> None:
        """A shard has come; once is enough."""
        if lease_id in self._hand:
            return
        loadable = without(ranges, verdicts)
        rows = size(loadable)
        todo = Read(lease_id, 0, loadable, rows)
        self._hand[lease_id] = InHand(lease_id, ranges, dict(verdicts), todo, rows)

    def drop(self, lease_id: int) -> None:
        """It is written and told, or given back: its segments are not needed for it any more."""
        shard = self._hand.pop(lease_id)
        self._segments.release([*shard.held, *shard.passing])

    # --- reading -------------------------------------------------------------------------------------

    def next_read(self, rows: int) -> Read | None:
        """Up to `rows` rows to read, of the oldest shard that has some."""
        for shard in self._hand.values():
            if shard.todo.rows:
                read, shard.todo = shard.todo.cut(min(rows, shard.todo.rows))
                return read
        return None

    @property
    def unread(self) -> int:
        """Rows that no loader was given yet."""
        return sum(shard.todo.rows for shard in self._hand.values())

    def loaded(self, read: Read, segment: str, errors: dict[int, str], now: float) -> list[Fresh]:
        """Rows are in a segment; what is ready for which stage by that."""
        if (shard := self._of(read.lease_id)) is None:
            return []
        shard.unloaded -= read.rows
        shard.chunks[(read.offset,)] = Chunk(segment, read.ranges, errors)
        self._hold(shard, segment)
        runs = runs_between(0, read.rows, errors)
        return self._fresh(shard, ROWS, segment, (read.offset,), runs, now)

    def unreadable(self, read: Read, text: str) -> None:
        """These rows cannot be read: they get this error."""
        if (shard := self._of(read.lease_id)) is None:
            return
        shard.unloaded -= read.rows
        shard.verdicts |= {at: text for start, stop in read.ranges for at in range(start, stop)}

    # --- stages --------------------------------------------------------------------------------------

    def begin(self, parts: Iterable[Slice]) -> None:
        """A stage is given these items."""
        for lease_id in {one.lease_id for one in parts}:
            if (shard := self._of(lease_id)) is not None:
                shard.begun = True

    def answered(self, stage: str, backs: Iterable[Back], now: float) -> list[Fresh]:
        """A batch of a stage is through; what is ready for which stage by that."""
        fresh: list[Fresh] = []
        for back in backs:
            one, piece = back.slice, back.piece
            if (shard := self._of(one.lease_id)) is None:
                continue
            shard.open_items -= one.size
            key = one.piece_key
            shard.pieces.setdefault(stage, {})[key] = piece
            new = self._fresh(shard, stage, piece.answer, key, back.runs, now)
            if piece.answer:
                shard.sources.setdefault(piece.answer, []).append((stage, key))
                if stage in self._kept:
                    self._hold(shard, piece.answer)
                elif new:
                    self._pass_on(shard, piece.answer, sum(each.size for _, each in new))
            self._let_pass(shard, one)
            fresh += new
        return fresh

    def position_of(self, one: Slice) -> int:
        """The position in the source of the row that the first item of a slice came from; -1: not known."""
        if (shard := self._of(one.lease_id)) is None:
            return -1
        segment, item, key = one.segment, one.start, one.key
        while segment in shard.sources:
            stage, key = next(each for each in shard.sources[segment] if each[1] == key)
            piece = shard.pieces[stage][key]
            segment, item, key = piece.source, piece.start + _came_from(piece, item - piece.at), key[:-1]
        return nth_position(shard.chunks[key].ranges, item) if key in shard.chunks else -1

    # --- writing -------------------------------------------------------------------------------------

    def ready_to_write(self) -> list[InHand]:
        """Shards that are complete and not handed out yet, which they are by this."""
        ready = [shard for shard in self._hand.values() if shard.complete and not shard.written]
        for shard in ready:
            shard.written = shard.begun = True
        return ready

    def write_order(self, lease_id: int, task: int, who: str) -> Write:
        """All that a writer has to know of a shard, in the order of its rows."""
        shard = self._hand[lease_id]
        return Write(
            task,
            lease_id,
            who,
            shard.ranges,
            tuple(chunk for _, chunk in sorted(shard.chunks.items(), key=_by_key)),
            {
                stage: tuple(piece for _, piece in sorted(shard.pieces[stage].items(), key=_by_key))
                if stage in shard.pieces
                else ()
                for stage in self._stages
            },
            shard.verdicts,
        )

    # --- inside --------------------------------------------------------------------------------------

    def _of(self, lease_id: int) -> InHand | None:
        return self._hand[lease_id] if lease_id in self._hand else None

    def _hold(self, shard: InHand, segment: str) -> None:
        if segment not in shard.held:
            shard.held.add(segment)
            self._segments.hold([segment])

    def _pass_on(self, shard: InHand, segment: str, items: int) -> None:
        """A segment is needed until so many items of it were answered."""
        if segment not in shard.passing:
            shard.passing[segment] = 0
            self._segments.hold([segment])
        shard.passing[segment] += items

    def _let_pass(self, shard: InHand, one: Slice) -> None:
        """Items were answered."""
        if one.segment in shard.passing:
            shard.passing[one.segment] -= one.size
            if not shard.passing[one.segment]:
                del shard.passing[one.segment]
                self._segments.release([one.segment])

    def _fresh(
        self, shard: InHand, parent: str, segment: str, key: Key, runs: Iterable[tuple[int, int]], now: float
    ) -> list[Fresh]:
        slices = [Slice(segment, start, stop, shard.lease_id, key, now) for start, stop in runs]
        fresh = [(stage, one) for stage in self._children[parent] for one in slices if one.size]
        shard.open_items += sum(one.size for _, one in fresh)
        return fresh


def cut_ranges(ranges: Ranges, count: int) -> tuple[Ranges, Ranges]:
    """The first `count` positions, and the rest."""
    first, second = [], []
    for start, stop in ranges:
        cut = min(start + max(0, count), stop)
        first += [(start, cut)] if cut > start else []
        second += [(cut, stop)] if stop > cut else []
        count -= stop - start
    return tuple(first), tuple(second)


def without(ranges: Ranges, positions: Iterable[int]) -> Ranges:
    """Ranges without some positions of theirs."""
    bad = sorted(positions)
    if not bad:
        return ranges
    return tuple(
        run
        for start, stop in ranges
        for run in runs_between(start, stop, (at for at in bad if start <= at < stop))
    )


def nth_position(ranges: Ranges, place: int) -> int:
    """The position at a place of these ranges."""
    for start, stop in ranges:
        if place < stop - start:
            return start + place
        place -= stop - start
    return -1


def _came_from(piece: Piece, item: int) -> int:
    """The item of a piece's source, counted from its start, that an item of its answer came from."""
    if not piece.counts:
        return item
    ends = np.cumsum(np.frombuffer(piece.counts, dtype="<i4"))
    return int(np.searchsorted(ends, item, side="right"))


def _by_key(entry: tuple[Key, object]) -> Key:
    return entry[0]
