"""An exchange that somebody looks on at: what its caller waits for goes through them (source: ours)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from shoestring.cluster.strategies import Layout
from shoestring.parallel.paro.exchange import Exchange, Pending, Scope

Wait = Callable[[Pending], None]


class WaitedExchange:
    """Base of exchanges that hand everything on to another, and carry out its waits in their own way.

    Args:
        inner: does the work.
    """

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner

    def waiter(self) -> Wait:
        """How to wait for the collective that is issued now; must wait for what it is given."""
        raise NotImplementedError

    @property
    def layout(self) -> Layout:
        """The ranks and their groups."""
        return self._inner.layout

    @property
    def rank(self) -> int:
        """This rank."""
        return self._inner.rank

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Waited(self._inner.gather(output, shard, scope), self.waiter())

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Waited(self._inner.reduce(shard, full, scope), self.waiter())

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Waited(self._inner.sum(tensor, scope), self.waiter())


class _Waited:
    def __init__(self, pending: Pending, wait: Wait) -> None:
        self._pending = pending
        self._wait = wait

    def done(self) -> bool:
        return self._pending.done()

    def wait(self) -> None:
        self._wait(self._pending)
