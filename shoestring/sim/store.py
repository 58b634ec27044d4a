"""The ledger's store on the virtual clock: what was committed survives, nothing else (source: ours).

`MemoryLedger` is the real DurableLedger with dictionaries in the place of the database's tables.
It writes the same deltas and nothing more, so a change that the ledger forgot to mark as touched
is lost at the next crash here as it would be on disk. Some seeds run on SQLite itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from shoestring.data.ledger import Lease, Ledger, LedgerSpec, Letter, Snapshot
from shoestring.data.store import DurableLedger


@dataclass
class Tables:
    """What stands on the disk. `full` makes each commit fail."""

    full: bool = False
    owner: bytes = b""
    url: str = "memory"
    opened: int = 0
    head: tuple[int, int] = (0, 1)
    meta: dict[str, bytes] = field(default_factory=dict)
    leases: dict[int, bytes] = field(default_factory=dict)
    returned: dict[int, int] = field(default_factory=dict)
    letters: dict[int, bytes] = field(default_factory=dict)

    @contextmanager
    def begin(self) -> Iterator[Tables]:
        """A transaction; it writes all or nothing, because nothing can happen within it."""
        if self.full:
            raise OperationalError("commit", {}, OSError("database or disk is full"))
        yield self


class MemoryLedger(DurableLedger):
    """A DurableLedger on `Tables`."""

    @classmethod
    def open_on(cls, tables: Tables, spec: LedgerSpec) -> MemoryLedger:
        """The ledger as it was last committed.

        Raises:
            LedgerError: the stored state contradicts itself.
        """
        ledger = cls(spec)
        leases = [msgspec.msgpack.decode(row, type=Lease) for _, row in sorted(tables.leases.items())]
        letters = [msgspec.msgpack.decode(row, type=Letter) for row in tables.letters.values()]
        returned = sorted(tables.returned.items())
        ledger._take(Ledger.restore(spec, Snapshot(spec, *tables.head, returned, leases, letters)))
        ledger._written_head = tables.head
        ledger._meta = dict(tables.meta)
        ledger._stored = {lease.lease_id for lease in leases}
        ledger.check()
        tables.opened += 1
        tables.owner = ledger._owner = b"%d" % tables.opened
        ledger._engine = cast(sa.Engine, tables)
        return ledger

    def close(self) -> None:
        """Nothing to let go of; the tables stay."""

    def _write(self, connection: Any) -> None:
        tables = cast(Tables, connection)
        if tables.owner != self._owner:
            raise sa.exc.InvalidRequestError("another coordinator has taken over this ledger")
        tables.head = (self._frontier, self._next_id)
        tables.meta.update({key: self._meta[key] for key in self._dirty_meta})
        encode = msgspec.msgpack.encode
        for number in self.touched_leases:
            tables.leases.pop(number, None)
            if number in self._leases:
                tables.leases[number] = encode(self._leases[number])
        for start in self._returned.touched:
            tables.returned.pop(start, None)
            stop = self._returned.stop_of(start)
            if stop is not None:
                tables.returned[start] = stop
        for position in self.touched_letters:
            tables.letters.pop(position, None)
            if position in self._letters:
                tables.letters[position] = encode(self._letters[position])


class SqliteLedger(DurableLedger):
    """The DurableLedger as it is, on SQLite; `tables` only says when the disk is full."""

    tables = Tables()

    @classmethod
    def open_in(cls, folder: Path, tables: Tables, spec: LedgerSpec) -> DurableLedger:
        """The ledger in the file `ledger.db` of a directory.

        Raises:
            LedgerError: as `open`.
        """
        ledger = cls.open(f"sqlite:///{folder / 'ledger.db'}", spec)
        cast(SqliteLedger, ledger).tables = tables
        return ledger

    def _write(self, connection: Any) -> None:
        with self.tables.begin():
            super()._write(connection)
