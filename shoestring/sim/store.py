"""The ledger's store on the virtual clock: what was committed survives, nothing else (source: ours).

The real DurableLedger on its own store in memory, which gets the same deltas as a database and
nothing more: a change that the ledger forgot to note is lost at the next crash here as it would
be on disk. Some seeds run on SQLite itself.
"""

from __future__ import annotations

from pathlib import Path

from shoestring.base.errors import LedgerError
from shoestring.data.ledger import LedgerSpec
from shoestring.data.store import DurableLedger
from shoestring.data.stores import Changes, MemoryStore, SqlStore


class Tables(MemoryStore):
    """What stands on the disk. `full` makes each commit fail."""


class MemoryLedger(DurableLedger):
    """A DurableLedger on `Tables`."""

    @classmethod
    def open_on(cls, tables: Tables, spec: LedgerSpec) -> MemoryLedger:
        """The ledger as it was last committed.

        Raises:
            LedgerError: the stored state contradicts itself.
        """
        return cls(spec, tables)


class SqliteLedger(DurableLedger):
    """The DurableLedger as it is, on SQLite; `tables` only says when the disk is full."""

    @classmethod
    def open_in(cls, folder: Path, tables: Tables, spec: LedgerSpec) -> DurableLedger:
        """The ledger in the file `ledger.db` of a directory.

        Raises:
            LedgerError: as `open`.
        """
        return cls.open(_Disk(f"sqlite:///{folder / 'ledger.db'}", tables), spec)


class _Disk(SqlStore):
    def __init__(self, url: str, tables: Tables) -> None:
        super().__init__(url)
        self._disk = tables

    def write(self, owner: bytes, changes: Changes) -> None:
        if self._disk.full:
            raise LedgerError("cannot write the ledger's store: no space left", "free some space")
        super().write(owner, changes)
