"""Publishes what the ledger has committed (source: ours).

A shard's output is committed in the same transaction as its `done`; only then is its staged file renamed to
its final name. A coordinator that dies between the two leaves that to the next one (`Outputs.open`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from shoestring.data.output_state import Output


class Sink(Protocol):
    """The coordinator's side of a sink: `data.outputs.Outputs`, or a fake."""

    def open(self, committed: Iterable[Output], sweep: bool) -> list[str]:
        """Finish what an earlier coordinator left. `sweep`: remove what is staged and not committed; while
        workers live, they may yet report it. Raises SinkError."""
        ...

    def publish(self, output: Output) -> None:
        """Rename it to its final name; again changes nothing. Raises SinkError."""
        ...

    def finish(self, facts: dict[str, Any]) -> None:
        """All is published: say so. Raises SinkError."""
        ...


class Publisher:
    """Publishes in order, after the commit.

    Args:
        sink: where to.
        aside: in a thread of its own, for sinks that take long (object stores); else at once.

    Raises:
        SinkError: from `publish`, `finish`: the sink cannot be written.
    """

    def __init__(self, sink: Sink, aside: bool = False) -> None:
        self._sink = sink
        self._pool = ThreadPoolExecutor(1, "publisher") if aside else None
        self._committed: list[Output] = []
        self._under_way: deque[Future[None]] = deque()
        self._finishing: Future[None] | None = None
        self._finished = False

    def recover(self, committed: list[Output], alone: bool) -> list[str]:
        """Finish what an earlier coordinator left; what was done, in words. `alone`: no worker can live."""
        return self._sink.open(committed, sweep=alone)

    def add(self, output: Output) -> None:
        """It is part of the next commit."""
        self._committed.append(output)

    def publish(self) -> None:
        """The commit is durable: what was added may be seen."""
        outputs, self._committed = self._committed, []
        for output in outputs:
            if self._pool is None:
                self._sink.publish(output)
            else:
                self._under_way.append(self._pool.submit(self._sink.publish, output))
        self._look()

    def finish(self, facts: dict[str, Any]) -> bool:
        """Everything is committed; True once all of it is published and the sink says so. Asked again and
        again until then."""
        if self._finished or self._committed:
            return self._finished
        if self._pool is None:
            self._sink.finish(facts)
            self._finished = True
            return True
        if self._finishing is None:
            self._finishing = self._pool.submit(self._sink.finish, facts)  # its turn comes after all others
        self._look()
        if not self._under_way and self._finishing.done():
            self._finishing.result()
            self._finished = True
        return self._finished

    def _look(self) -> None:
        """Raise what the thread met."""
        while self._under_way and self._under_way[0].done():
            self._under_way.popleft().result()
