"""What the coordinator and its parts write down: the log of events, and what outlives a restart."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from shoestring.fleet.terms import Update


class Log(Protocol):
    """Where events go: `base.record.RunRecord`, or a list in tests."""

    def append(self, kind: str, **fields: Any) -> object:
        """Record one event."""
        ...


class Persisted(msgspec.Struct):
    """What survives the coordinator beside the ledger, in the same transaction.

    With parameter servers: `pushes` were numbered so far, `updates` may not be with all servers yet, and
    states of rounds before `lineage` are of a past that the fleet has left.
    """

    round_id: int = 0
    confirmed: int = 0
    elapsed_s: float = 0.0
    drilled: bool = False
    members: bytes = b""
    control: bytes = b""
    pushes: int = 0
    lineage: int = 0
    updates: tuple[Update, ...] = ()
    server_control: bytes = b""
