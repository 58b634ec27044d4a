"""What the processes of a stage are given: batches of its target size (source: AntBatchInfer, target batch
size; blame and back-pressure are ours)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from shoestring.base.errors import InferError
from shoestring.control.batching import BatchSize
from shoestring.infer.blame import Blame, BugWatch, Failure, Work
from shoestring.infer.crew import Member, Task
from shoestring.infer.lanes import Bench, Broken, Pace
from shoestring.infer.regroup import Slices, all_failed, cut_back, halves, total
from shoestring.infer.wire import Predict, Predicted, Replies

FULL_QUEUE = 4
"""Batches for each process of a stage that wait before it: with more, who fills the queue rests."""


AHEAD_S = 0.5
"""A batch that takes longer than that is not handed out ahead: beside it the time until an idle process has
the next one does not count."""
AHEAD_QUEUE = 2
"""Batches for each process that must wait, for one to be handed out ahead: or others idle while it waits."""


@dataclass(frozen=True)
class StageRules:
    """How a stage's batches are made.

    Attributes:
        max_wait_s: see StageConfig.
        hang_s: a batch that takes longer counts as hung.
        bug_rows: so many of its first items must fail alike to be called a bug.
    """

    max_wait_s: float
    hang_s: float
    bug_rows: int


class StageLane:
    """Batches of a stage.

    Args:
        name: the stage's.
        bench: what all lanes work with.
        sizes: how many items a batch should have.
        rules: see there.
        dry: whether nothing upstream can add to its queue now.

    Attributes:
        children: stages that get what comes out; filled in later.
        streams: whether its processes take many batches at a time.
    """

    def __init__(
        self, name: str, bench: Bench, sizes: BatchSize, rules: StageRules, dry: Callable[[], bool]
    ) -> None:
        self.name = name
        self.begin_with(sizes)
        self.children: list[StageLane] = []
        self.streams = False
        self._first = ""
        self._bench = bench
        self._rules = rules
        self._dry = dry
        self._queue = bench.queues[name]
        self._blame: Blame[Slices] = Blame(_split_slices)
        self._watch = BugWatch(rules.bug_rows)
        self._pace = Pace()

    def begin_with(self, sizes: BatchSize) -> None:
        """Batches as `sizes` says from now on."""
        self.sizes = sizes
        self._began = sizes.size
        self._passed = self._kills = 0

    @property
    def waiting(self) -> int:
        """Items before it."""
        return self._queue.size + self._blame.items

    @property
    def depth(self) -> int:
        """Tasks that a process may have at a time."""
        many = AHEAD_QUEUE * self.sizes.size * max(1, self._bench.crew.target(self.name))
        ahead = 0 < self._pace.typical_s < AHEAD_S and self._queue.size >= many
        return 2 if ahead else self._pace.depth

    @property
    def enough(self) -> int:
        """Items that may wait before it."""
        return FULL_QUEUE * self.sizes.size * max(1, self._bench.crew.target(self.name))

    @property
    def busy(self) -> bool:
        """Whether anything is in it that may come out."""
        return self.waiting > 0 or self._bench.crew.working(self.name) > 0

    def ripe_at(self) -> float:
        """When its oldest item will have waited long enough."""
        return self._queue.ripe_at(self._rules.max_wait_s)

    def offer(self, member: Member[object], now: float) -> Task[object] | None:
        """The next batch: what failed before goes first, alone in its process."""
        if len(self._blame):  # a process that has tasks gets no more, until it has none
            work = self._blame.next() if not member.tasks else None
            return self._task(work, alone=True) if work is not None else None
        if any(lane.waiting >= lane.enough for lane in self.children):
            return None
        target = self.sizes.size
        if member.streams:  # it takes what it has room for, at once
            # One by one where it has places: each makes room when it is through, whatever came with it.
            slices = self._queue.take(1 if member.room >= 0 else target)
        else:
            idle = not member.tasks
            ripe = self._queue.ripe(target, now, self._rules.max_wait_s, idle, idle and self._dry())
            slices = self._queue.take(target) if ripe else ()
        return self._task(Work(slices, total(slices)), alone=False) if slices else None

    def _task(self, work: Work[Slices], alone: bool) -> Task[object]:
        number = self._bench.next_task()
        order = Predict(number, tuple(one.ref for one in work.parts), f"a{number}")
        holds = tuple({one.segment for one in work.parts})
        self._bench.segments.hold(holds)
        self._bench.shards.begin(work.parts)
        return Task(order, work, work.items, holds, self._pace.limit_s(work, self._rules.hang_s), alone)

    def came(self, task: Task[object], reply: Replies, now: float) -> None:
        """An answer: what comes out goes on."""
        work, order = _batch_of(task), task.order
        assert isinstance(reply, Predicted) and isinstance(order, Predict)
        try:
            backs = cut_back(work.parts, order.segment, reply.rows, reply.counts, reply.errors)
        except InferError as error:
            self.failed(task, Failure("raised", error.what, error.what, str(error)), now)
            return
        self._bench.arrived(order.segment, reply.size_bytes)
        self._bench.ready(self._bench.shards.answered(self.name, backs, now))
        self._bench.segments.discard_unheld(order.segment)
        self._bench.segments.release(task.holds)
        self._pace.saw(reply.cost.took_s)
        self._passed = max(self._passed, work.items)
        self._bench.pools.saw(self.name, work.items, reply.rows, reply.cost)
        if not self.streams:  # there a batch takes as long as others leave it room
            self.sizes.saw(work.items, reply.cost.took_s, reply.cost.memory_bytes)
        self._blame.passed(self._current(work))
        self._watch.passed()

    def failed(self, task: Task[object], failure: Failure, now: float) -> None:
        """A batch has failed: which item it was, halves tell.

        Raises:
            Broken: all the first ones have, in the same way.
        """
        work = self._in_hand(task)
        if failure.kind == "killed" and self._had_grown(work):
            self._bench.fault(f"{self.name}: killed with {work.items} items: taken for want of memory")
            failure = replace(failure, kind="memory")
        if failure.kind == "memory" and work.items > 1:
            self.sizes.too_large(work.items)
        if not work.items:
            self._blame.passed(work)  # its other half is still to be tried
            return
        guilty, _ = self._blame.failed(work, failure)
        if guilty is None:
            return
        if not self._first and self._watch.open:
            self._first = self._row_of(guilty)
        if self._watch.guilty(failure):
            raise Broken(*told_bug(self.name, self._first, failure, self._rules.bug_rows))
        self._bench.ready(self._bench.shards.answered(self.name, all_failed(guilty, failure.text), now))

    def _had_grown(self, work: Work[Slices]) -> bool:
        """Whether SIGKILL is taken for the kernel's, for want of memory: anybody may send it. It is where the
        batch was larger than any that went well; as large as the first ones, it is the second time."""
        if self.streams or work.suspect or work.items <= max(1, self._passed):
            return False
        self._kills += 1
        return work.items > self._began or self._kills > 1

    def spared(self, task: Task[object]) -> None:
        """A batch was not begun."""
        work = self._in_hand(task)
        if not work.items:
            self._blame.passed(work)
        elif work.suspect:
            self._blame.put_back(work)
        else:
            self._queue.put_back(work.parts)

    def drop(self, lease_id: int) -> None:
        """Its items are not needed."""
        self._queue.drop(lease_id)
        self._blame.drop(lambda slices: _without(slices, lease_id))

    def _in_hand(self, task: Task[object]) -> Work[Slices]:
        """What a task was about, now that it has come to nothing."""
        self._bench.segments.release(task.holds)
        if isinstance(task.order, Predict):
            self._bench.remove(task.order.segment)
        return self._current(_batch_of(task))

    def _current(self, work: Work[Slices]) -> Work[Slices]:
        """Without items of shards that were dropped meanwhile; with items gone nothing is proven."""
        kept = tuple(one for one in work.parts if one.lease_id in self._bench.shards)
        partner = self._current(work.partner) if work.partner is not None else None
        partner = partner if partner is not None and partner.items else None
        if len(kept) == len(work.parts):
            return Work(work.parts, work.items, work.failures, work.known, partner)
        if partner is not None:
            partner = Work(partner.parts, partner.items, partner.failures)
        return Work(kept, total(kept), work.failures, False, partner)

    def _row_of(self, guilty: Slices) -> str:
        """What a user knows the row by that an item came from."""
        position = self._bench.shards.position_of(guilty[0])
        return self._bench.identity(position) if position >= 0 else "not known"


def told_bug(stage: str, row: str, failure: Failure, rows: int) -> tuple[str, str]:
    """A bug in words: what, and what to do."""
    first = (
        f"stage {stage} fails with all of its first {rows} rows in the same way"
        if rows > 1
        else (f"stage {stage} fails")
    )
    detail = f"\n{failure.detail.rstrip()}" if failure.detail else ""
    todo = failure.todo or "mend the stage; then run the same command again: what is done stays done"
    return f"{first}: {failure.text} (row {row}){detail}", todo


def _split_slices(slices: Slices) -> tuple[Slices, Slices, int]:
    first, second = halves(slices)
    return first, second, total(first)


def _without(slices: Slices, lease_id: int) -> tuple[Slices, int]:
    kept = tuple(one for one in slices if one.lease_id != lease_id)
    return kept, total(kept)


def _batch_of(task: Task[object]) -> Work[Slices]:
    assert isinstance(task.work, Work)
    return task.work
