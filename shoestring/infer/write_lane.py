"""What writers are given: complete shards, and staged files that were in vain (source: ours)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from shoestring.data.output_state import Staged
from shoestring.infer.blame import Failure
from shoestring.infer.crew import Member, Task
from shoestring.infer.lanes import Bench, Broken
from shoestring.infer.wire import Discard, Replies, Wrote

WRITE_TRIES = 3
WRITE_PAUSE_S = 1.0


@dataclass
class _Write:
    """A shard that is to be written, or something staged that is to be removed."""

    lease_id: int
    rows: int
    discard: Staged | None = None
    tries: float = 0.0
    not_before_s: float = 0.0


class WriteLane:
    """Files of complete shards.

    Args:
        bench: what all lanes work with.
        who: of this worker, for the names of staged files.
        hang_s: a file that takes longer counts as hung.
        staged: takes each shard that is staged.
    """

    name = "write"
    depth = 1

    def __init__(self, bench: Bench, who: str, hang_s: float, staged: Callable[[int, Staged], None]) -> None:
        self._bench = bench
        self._who = who
        self._hang_s = hang_s
        self._staged = staged
        self._queue: deque[_Write] = deque()

    @property
    def waiting(self) -> int:
        """Rows of complete shards."""
        return sum(one.rows for one in self._queue)

    @property
    def busy(self) -> bool:
        """Whether something is to be written or removed."""
        return bool(self._queue) or self._bench.crew.working(self.name) > 0

    def collect(self) -> None:
        """Take what is complete."""
        for shard in self._bench.shards.ready_to_write():
            self._queue.append(_Write(shard.lease_id, shard.rows))

    def discard(self, staged: Staged) -> None:
        """Remove what was staged in vain."""
        self._queue.append(_Write(-1, 0, staged))

    def offer(self, member: Member[object], now: float) -> Task[object] | None:
        """The next file."""
        one = next((each for each in self._queue if now >= each.not_before_s), None)
        if one is None:
            return None
        self._queue.remove(one)
        number, shards = self._bench.next_task(), self._bench.shards
        if one.discard is not None:
            return Task(Discard(number, one.discard), one, 0, (), self._hang_s)
        order = shards.write_order(one.lease_id, number, self._who)
        return Task(order, one, one.rows, (), self._hang_s)

    def came(self, task: Task[object], reply: Replies, now: float) -> None:
        """A file is staged."""
        one = _write_of(task)
        assert isinstance(reply, Wrote)
        if one.discard is not None:
            return
        self._bench.pools.saw(self.name, one.rows, one.rows, reply.cost)
        if reply.staged is None:
            raise Broken("a writer has staged nothing", "report this; it is a mistake in shoestring")
        if one.lease_id in self._bench.shards:
            self._bench.shards.drop(one.lease_id)
            self._staged(one.lease_id, reply.staged)
        else:  # given back meanwhile
            self.discard(reply.staged)

    def failed(self, task: Task[object], failure: Failure, now: float) -> None:
        """A file could not be written: again, but not for ever.

        Raises:
            Broken: it has been tried often enough.
        """
        one = _write_of(task)
        # Whoever is killed from outside is not at fault; a sink that is full for a moment has these seconds.
        one.tries += 0.5 if failure.kind == "killed" else 1.0
        one.not_before_s = now + (WRITE_PAUSE_S * one.tries if failure.kind == "raised" else 0.0)
        if one.tries < WRITE_TRIES:
            self.spared(task)
        elif one.discard is None:
            raise Broken(
                f"the output of {one.rows} rows cannot be written: {failure.text}"
                + (f"\n{failure.detail.rstrip()}" if failure.detail else ""),
                failure.todo or "mend the sink, then resume the run: what is done stays done",
            )
        else:
            self._bench.fault(f"{one.discard.name}, staged in vain, cannot be removed: {failure.text}")

    def spared(self, task: Task[object]) -> None:
        """It was not written."""
        one = _write_of(task)
        if one.discard is not None or one.lease_id in self._bench.shards:
            self._queue.appendleft(one)

    def drop(self, lease_id: int) -> None:
        """It is not to be written."""
        self._queue = deque(one for one in self._queue if one.lease_id != lease_id)


def _write_of(task: Task[object]) -> _Write:
    assert isinstance(task.work, _Write)
    return task.work
