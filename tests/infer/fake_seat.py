"""A coordinator of a job over rows in a few lines, as a worker's seat shows it."""

from __future__ import annotations

from collections import deque
from typing import Any

from shoestring.base.errors import TransportError
from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m


class FakeSeat:
    """A coordinator: shards of `shard_rows` rows, each counted once."""

    def __init__(self, rows: int, shard_rows: int, given_up: dict[int, str] | None = None) -> None:
        self.todo = deque((at, min(rows, at + shard_rows)) for at in range(0, rows, shard_rows))
        self.leases: dict[int, tuple[tuple[int, int], ...]] = {}
        self.done_leases: dict[int, Staged] = {}
        self.backs: list[tuple[int, str]] = []
        self.broken_with: tuple[str, str] | None = None
        self.orders = m.ShardOrders()
        self.away = False
        self.late: set[int] = set()
        self.stopped = False
        self.tells: list[Any] = []
        self.changes: list[Any] = []
        self.faults: list[str] = []
        self._given_up = given_up or {}
        self._number = 0

    def lease(self) -> Any:
        self._reach()
        if self.stopped or (not self.todo and not self.leases):
            return m.Stop("all rows are done")
        if not self.todo:
            return None
        start, stop = self.todo.popleft()
        self._number += 1
        self.leases[self._number] = ((start, stop),)
        verdicts = {at: text for at, text in self._given_up.items() if start <= at < stop}
        return m.Shard(self._number, ((start, stop),), verdicts)

    def done(self, lease_id: int, staged: Staged) -> str:
        self._reach()
        if lease_id in self.late:
            return "late"
        if lease_id in self.done_leases:
            return "duplicate"
        assert lease_id in self.leases
        del self.leases[lease_id]
        self.done_leases[lease_id] = staged
        return "counted"

    def give_back(self, lease_id: int, reason: str) -> None:
        self._reach()
        self.backs.append((lease_id, reason))
        self.todo.extend(self.leases.pop(lease_id))

    def broken(self, what: str, todo: str) -> None:
        self._reach()
        self.broken_with = (what, todo)

    def tell(
        self, pools: Any = (), changes: Any = (), faults: Any = (), begun: int = 0, notice: str = ""
    ) -> Any:
        self.changes += changes
        self.faults += faults
        self._reach()
        self.tells.append((pools, begun, notice))
        return self.orders

    def _reach(self) -> None:
        if self.away:
            raise TransportError("away", "ask again")
