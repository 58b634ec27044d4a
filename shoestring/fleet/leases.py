"""Plain leases for jobs without rounds: ask, work, report done (AntDT / AntBatchInfer sharding)."""

from __future__ import annotations

from shoestring.data.store import DurableLedger
from shoestring.fleet import messages as m

RETRY_S = 0.05


class LeaseDesk:
    """Hands out leases; a repeated request gets the lease that the first one was given."""

    def __init__(self, ledger: DurableLedger) -> None:
        self._ledger = ledger
        self._last: dict[str, tuple[int, m.Leased]] = {}

    def lease(self, now: float, request: m.Lease) -> m.Reply:
        """A lease, `Wait` while others may still give samples back, or an empty one at the end."""
        if request.client in self._last and self._last[request.client][0] == request.request:
            return self._last[request.client][1]
        lease = self._ledger.lease(now, request.client, request.count)
        if lease is None:
            return m.Leased(-1, ()) if self._ledger.finished else m.Wait(RETRY_S)
        reply = m.Leased(lease.lease_id, tuple(lease.ranges))
        self._last[request.client] = (request.request, reply)
        return reply

    def done(self, now: float, request: m.Done) -> m.Reply:
        """Counts a lease once; a late or repeated report is recognised and told so."""
        return m.DoneReply(self._ledger.complete(now, request.lease_id, request.client).name.lower())
