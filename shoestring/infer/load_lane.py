"""What loaders are given to read (source: ours)."""

from __future__ import annotations

from shoestring.infer.blame import Blame, Failure, Work
from shoestring.infer.crew import Member, Task
from shoestring.infer.lanes import Bench, Pace
from shoestring.infer.pressure import Budget, may_read, read_rows
from shoestring.infer.shards import Read
from shoestring.infer.stage_lane import StageLane
from shoestring.infer.wire import Load, Loaded, Orders, Replies


class LoadLane:
    """Reads rows, the oldest shard's first, for as long as there is room for them.

    Args:
        bench: what all lanes work with.
        chunk_rows: rows of a read.
        hang_s: a read that takes longer counts as hung.
        budget: of shared memory.
        roots: stages that get the rows.
    """

    name = "load"

    def __init__(
        self, bench: Bench, chunk_rows: int, hang_s: float, budget: Budget, roots: tuple[StageLane, ...]
    ) -> None:
        self._bench = bench
        self._chunk_rows = chunk_rows
        self._hang_s = hang_s
        self._budget = budget
        self._roots = roots
        self._blame: Blame[Read] = Blame(_split_read)
        self._pace = Pace()
        self.reading_rows = 0
        self.row_bytes = 0.0

    @property
    def waiting(self) -> int:
        """Rows that no loader has."""
        return self._bench.shards.unread + self._blame.items

    @property
    def depth(self) -> int:
        """Tasks that a process may have at a time."""
        return self._pace.depth

    @property
    def busy(self) -> bool:
        """Whether rows are being read, or will be tried again."""
        return self.reading_rows > 0 or len(self._blame) > 0

    def offer(self, member: Member[object], now: float) -> Task[object] | None:
        """The next read: what failed before goes first, alone in its process."""
        if len(self._blame):
            return self._task(work, now) if not member.tasks and (work := self._blame.next()) else None
        rows = read_rows(self._chunk_rows, self.row_bytes, self._budget.chunk_bytes)
        if not self._may_read(rows):
            return None
        read = self._bench.shards.next_read(rows)
        return self._task(Work(read, read.rows), now) if read is not None else None

    def _may_read(self, rows: int) -> bool:
        enough = max((lane.enough for lane in self._roots), default=0) + rows
        queued = max((lane.waiting for lane in self._roots), default=0) + self.reading_rows
        idle = not self.reading_rows and not any(
            lane.waiting or self._bench.crew.working(lane.name) for lane in self._roots
        )
        held_bytes = self._bench.segments.held_bytes + self.reading_rows * self.row_bytes
        others = any(self._bench.crew.working(name) for name in self._bench.queues) or bool(
            self._bench.crew.working("write")
        )
        return may_read(
            queued < enough, held_bytes + rows * self.row_bytes, self._budget.now_bytes, idle and not others
        )

    def _task(self, work: Work[Read], now: float) -> Task[object]:
        number = self._bench.next_task()
        self.reading_rows += work.items
        order = Load(number, work.parts.ranges, f"r{number}")
        # Also for a suspect, whose process is new: most reads go on with what an earlier one has decoded, and
        # what is usual says nothing of one that cannot.
        return Task(order, work, work.items, (), self._hang_s, alone=work.suspect)

    def came(self, task: Task[object], reply: Replies, now: float) -> None:
        """Rows are there."""
        work, order = _read_of(task), task.order
        assert isinstance(reply, Loaded) and isinstance(order, Load)
        self.reading_rows -= work.items
        if work.items:
            seen = reply.size_bytes / work.items
            self.row_bytes = seen if not self.row_bytes else max(seen, 0.9 * self.row_bytes + 0.1 * seen)
        self._pace.saw(reply.cost.took_s)
        self._bench.pools.saw(self.name, work.items, work.items, reply.cost)
        self._bench.arrived(order.segment, reply.size_bytes)
        self._bench.ready(self._bench.shards.loaded(work.parts, order.segment, reply.errors, now))
        self._bench.segments.discard_unheld(order.segment)
        if work.parts.lease_id in self._bench.shards:
            self._blame.passed(work)

    def failed(self, task: Task[object], failure: Failure, now: float) -> None:
        """A read has failed: which row it was, halves tell."""
        work = _read_of(task)
        self.reading_rows -= work.items
        self._clean(task.order)
        if work.parts.lease_id not in self._bench.shards:
            return
        guilty, _ = self._blame.failed(work, failure)
        if guilty is not None:
            self._bench.shards.unreadable(guilty, failure.text)

    def spared(self, task: Task[object]) -> None:
        """A read was not begun."""
        work = _read_of(task)
        self.reading_rows -= work.items
        self._clean(task.order)
        if work.parts.lease_id in self._bench.shards:
            self._blame.put_back(work)

    def drop(self, lease_id: int) -> None:
        """Its reads are not needed."""
        self._blame.drop(lambda read: (read, 0 if read.lease_id == lease_id else read.rows))

    def _clean(self, order: Orders) -> None:
        if isinstance(order, Load):
            self._bench.remove(order.segment)


def _split_read(read: Read) -> tuple[Read, Read, int]:
    left = (read.rows + 1) // 2
    return (*read.cut(left), left)


def _read_of(task: Task[object]) -> Work[Read]:
    assert isinstance(task.work, Work)
    return task.work
