"""A worker's seat in a job over rows: its side of the conversation with the shard coordinator (source: ours).

One thread calls; each call is one round trip, and raises at once where there is no answer, so that a worker's
own processes go on while the coordinator is away. A second thread with a channel of its own sends heartbeats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from shoestring.base.clock import Clock
from shoestring.base.errors import TransportError
from shoestring.data.output_state import Staged
from shoestring.fleet import messages as m
from shoestring.fleet.config import MemberConfig
from shoestring.fleet.job_status import PoolShown
from shoestring.fleet.seat import BaseSeat, DismissedError, expected
from shoestring.fleet.shard_messages import PoolChange

if TYPE_CHECKING:
    from shoestring.fleet.channel import Channel

T = TypeVar("T")
PHASE = "compute"
"""Of heartbeats: the time since the last call counts as work, so that a loop that is stuck is found hung."""


class ShardSeat(BaseSeat):
    """What a worker's loop talks to; see `BaseSeat`. It calls `tell` about once a second, whatever else it
    does.

    Raises (every call):
        TransportError: no answer; call again later, with the same arguments. It counts once.
        DismissedError: this process was replaced, or the job has failed: leave, touch nothing.
        FleetError: no answer for as long as a coordinator that hangs is suffered, and another one needs to
            start; or it refuses.
    """

    def __init__(
        self,
        name: str,
        incarnation: int,
        open_channel: Callable[[], Channel],
        clock: Clock,
        config: MemberConfig,
    ) -> None:
        super().__init__(name, incarnation, open_channel, clock, config)
        self._answered_s = clock.now()
        self._request = 1
        self._ask_at_s = clock.now()
        self._over: m.Stop | None = None
        self._changes: list[PoolChange] = []
        self._faults: list[str] = []
        self._told_changes = self._told_faults = 0

    @property
    def silent_s(self) -> float:
        """For how long there has been no answer."""
        return self._clock.now() - self._answered_s

    def lease(self) -> m.Shard | m.Stop | None:
        """Rows to work on, or that there will be no more for this worker (finish what is in hand, then
        leave); None: nothing now, ask again. Asked too soon after a None, it answers by itself."""
        if self._over is not None:
            return self._over
        if self._clock.now() < self._ask_at_s:
            return None
        reply = self._call(m.ShardLease(self.name, self.incarnation, self._request))
        if isinstance(reply, m.Wait):
            self._ask_at_s = self._clock.now() + reply.retry_s
            return None
        if isinstance(reply, m.Stop):
            self._over = reply
            return reply
        self._request += 1
        return _expect(reply, m.Shard)

    def done(self, lease_id: int, staged: Staged) -> str:
        """A shard's rows are staged, durable: `counted`, `late` (remove what is staged) or `duplicate` (it
        was counted before)."""
        reply = self._call(m.ShardDone(self.name, self.incarnation, lease_id, staged))
        return _expect(reply, m.DoneReply).outcome

    def give_back(self, lease_id: int, reason: str) -> None:
        """A shard goes back unfinished, for others to work on; on return the ledger knows."""
        _expect(self._call(m.ShardBack(self.name, self.incarnation, lease_id, reason)), m.Ack)

    def broken(self, what: str, todo: str) -> None:
        """Going on makes no sense; on return the job has failed with this."""
        _expect(self._call(m.JobBroken(self.name, self.incarnation, what, todo)), m.Ack)

    def tell(
        self,
        pools: tuple[PoolShown, ...] = (),
        changes: tuple[PoolChange, ...] = (),
        faults: tuple[str, ...] = (),
        begun: int = 0,
        notice: str = "",
    ) -> m.ShardOrders:
        """How this worker gets on. Changes and faults are kept here until they were told: after a
        TransportError do not pass the same ones again."""
        self._changes += changes
        self._faults += faults
        told_changes, told_faults = tuple(self._changes), tuple(self._faults)
        reply = self._call(
            m.ShardTold(
                self.name, self.incarnation, pools, told_changes, told_faults, begun, notice,
                self._told_changes, self._told_faults,
            )
        )  # fmt: skip
        orders = _expect(reply, m.ShardOrders)
        self._told_changes += len(told_changes)
        self._told_faults += len(told_faults)
        self._changes.clear()
        self._faults.clear()
        return orders

    def _call(self, request: m.Request) -> m.Reply:
        self._pulse.enter(PHASE, self._clock.now())
        try:
            reply = self._ask(request)
        except TransportError as error:
            self._bear(self.silent_s, error)
            raise
        self._answered_s = self._clock.now()
        self._pulse.enter(PHASE, self._answered_s)
        return reply


def _expect(reply: m.Reply, kind: type[T]) -> T:
    if isinstance(reply, m.Stop):
        raise DismissedError(f"the job is over: {reply.reason}", "nothing: the next start cleans up")
    return expected(reply, kind)
