"""A worker's part of one step, as passes over micro-batches (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoestring.base.errors import SampleError
from shoestring.fleet.messages import Order
from shoestring.train.task import SampleIds


class Passes:
    """The micro-batches of an order, loaded one after the other.

    Args:
        order: of this worker.
        size: samples of a micro-batch.
        locate: positions of the ledger -> sample ids, both int64 [n].
        load: reads samples.

    Attributes:
        begun: micro-batches that were asked for.
        failures: position -> why it cannot be used, of the micro-batches so far. Those are left out.
    """

    def __init__(
        self,
        order: Order,
        size: int,
        locate: Callable[[int, int], SampleIds],
        load: Callable[[SampleIds], Any],
    ) -> None:
        self.begun = 0
        self.failures: dict[int, str] = {}
        self._ranges = order.ranges
        self._size = size
        self._locate = locate
        self._load = load

    def __iter__(self) -> Iterator[tuple[SampleIds, Any]]:
        """Each micro-batch: ids, and what the task has loaded of them; none where all of it failed."""
        at = self._positions()
        for first in range(0, len(at), self._size):
            here = at[first : first + self._size]
            self.begun += 1
            ids = self._ids(here)
            try:
                yield ids, self._load(ids)
            except SampleError as error:
                bad = np.isin(ids, list(error.failures))
                self.failures |= {
                    int(p): error.failures[int(i)] for p, i in zip(here[bad], ids[bad], strict=True)
                }
                if not bad.all():
                    yield ids[~bad], self._load(ids[~bad])

    def count_of(self, begun: int) -> int:
        """Positions in so many micro-batches."""
        return min(begun * self._size, sum(stop - start for start, stop in self._ranges))

    def after(self, begun: int) -> tuple[tuple[int, int], ...]:
        """Positions that come after so many micro-batches, as half-open ranges."""
        at = self._positions()[begun * self._size :]
        if not len(at):
            return ()
        return tuple((int(part[0]), int(part[-1]) + 1) for part in _runs(at))

    def _positions(self) -> NDArray[np.int64]:
        parts = [np.arange(start, stop, dtype=np.int64) for start, stop in self._ranges]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def _ids(self, at: NDArray[np.int64]) -> SampleIds:
        return np.concatenate([self._locate(int(part[0]), len(part)) for part in _runs(at)])


def _runs(at: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Neighbours together."""
    return np.split(at, np.flatnonzero(np.diff(at) != 1) + 1)
