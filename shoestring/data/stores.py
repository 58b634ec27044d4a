"""Where a ledger's rows live: any database that SQLAlchemy Core speaks, or memory (source: ours).

SQLite in WAL mode with full synchronisation is the default: a commit that returned has reached
the disk. Statements are plain deletes and inserts, the same for every database.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from shoestring.base.clock import Clock, SystemClock
from shoestring.data import databases

T = TypeVar("T")
Row = tuple[Any, ...]
Rows = dict[str, list[Row]]
OWNER = "owner"
META = "meta"
FIRST_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
_ONE_BY_ONE = sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")


class Claim(msgspec.Struct):
    """A store as it was when it was claimed: values by key, rows by table in the order of their keys."""

    owner: bytes
    meta: dict[str, bytes]
    rows: Rows


class Changes(msgspec.Struct):
    """What a commit writes: values by key; the rows of `gone` keys go, then `rows` come."""

    meta: dict[str, bytes]
    gone: dict[str, list[int]]
    rows: Rows


class Store(Protocol):
    """Where a ledger lives. One writer at a time: whoever claimed it last."""

    def claim(self) -> Claim:
        """Become the owner, and read everything.

        Raises:
            LedgerError: it cannot be opened, or is damaged.
        """
        ...

    def write(self, owner: bytes, changes: Changes) -> None:
        """Write all of it in one transaction, durable on return.

        Raises:
            LedgerError: nothing was written: no space, or somebody else has claimed the store.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


# The first column of each is its key.
TABLES: dict[str, tuple[tuple[str, type[sa.types.TypeEngine[Any]]], ...]] = {
    "leases": (
        ("lease_id", sa.BigInteger), ("holder", sa.Text), ("tag", sa.BigInteger), ("ranges", sa.LargeBinary),
    ),
    "returned": (("start", sa.BigInteger), ("stop", sa.BigInteger)),
    "letters": (
        ("position", sa.BigInteger), ("attempts", sa.BigInteger), ("dead", sa.BigInteger), ("error", sa.Text),
    ),
    "suspects": (("start", sa.BigInteger), ("stop", sa.BigInteger), ("losses", sa.BigInteger)),
    "lost": (("start", sa.BigInteger), ("stop", sa.BigInteger)),
    "outputs": (("lease_id", sa.BigInteger), ("output", sa.LargeBinary)),
}  # fmt: skip


class MemoryStore:
    """A store in memory: what was written survives the ledgers on it. The fake of `SqlStore`.

    Attributes:
        full: makes each write fail, as a full disk does.
    """

    def __init__(self) -> None:
        self.full = False
        self._claims = 0
        self._meta: dict[str, bytes] = {}
        self._rows: dict[str, dict[int, Row]] = {name: {} for name in TABLES}

    def claim(self) -> Claim:
        """Every earlier claim is void from now on."""
        self._claims += 1
        rows = {name: [kept[key] for key in sorted(kept)] for name, kept in self._rows.items()}
        return Claim(b"%d" % self._claims, dict(self._meta), rows)

    def write(self, owner: bytes, changes: Changes) -> None:
        """All or nothing, for nothing can happen within it.

        Raises:
            LedgerError: it is full, has another owner, or would hold two rows for one key.
        """
        if owner != b"%d" % self._claims:
            raise databases.taken_over("in memory")
        if self.full:
            raise databases.cannot_write("in memory", "no space left")
        for name, rows in changes.rows.items():
            doubled = {row[0] for row in rows} & (self._rows[name].keys() - set(changes.gone[name]))
            if doubled:
                raise databases.cannot_write("in memory", f"two rows for {name} {sorted(doubled)[:5]}")
        self._meta |= changes.meta
        for name, keys in changes.gone.items():
            for key in keys:
                self._rows[name].pop(key, None)
        for name, rows in changes.rows.items():
            self._rows[name].update((row[0], row) for row in rows)

    def close(self) -> None:
        """Nothing to let go of."""


class SqlStore:
    """A store in a database: SQLite, or PostgreSQL for coordinators that may come up on other hosts.

    Many jobs can share a database: each one's tables begin with its name. Who writes is settled by one row,
    which each transaction changes first: it says who the owner is and counts the commits. So a second
    claimer makes the first one's next commit fail, also when both are at it at the same time; and when the
    database goes away in the middle of a commit, the count says afterwards whether it was applied.

    A database on a server may be away for a while (restart, failover): `write` and `claim` go on trying.

    Args:
        url: as SQLAlchemy reads it: `sqlite:///path`, `postgresql+psycopg://user@host/name`; and see
            `databases.address`.
        job: whose ledger this is among others in the database, where the URL does not say.
        patience_s: for a server that is away, where the URL does not say.
        clock: to wait by.
        told: see the attribute.

    Attributes:
        told: is told, in words, that the database is away, once each time that it goes.

    Raises:
        LedgerError: the URL names no database that can be spoken to.
    """

    def __init__(
        self,
        url: str,
        job: str = "",
        patience_s: float = 60.0,
        clock: Clock | None = None,
        told: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._address = databases.address(url, job, patience_s)
        self.told = told
        self._name = self._address.shown
        self._clock = clock or SystemClock()
        try:
            self._engine = databases.engine_of(self._address.url)
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise databases.cannot_open(self._name, error) from error
        self._connection: sa.Connection | None = None
        self._owner, self._count = b"", 0
        self._metadata = sa.MetaData()
        self._meta = sa.Table(
            f"{self._address.prefix}meta", self._metadata,
            sa.Column("key", sa.String(64), primary_key=True),
            sa.Column("value", sa.LargeBinary, nullable=False),
        )  # fmt: skip
        self._by_name = {
            name: sa.Table(
                f"{self._address.prefix}{name}", self._metadata,
                *(
                    sa.Column(column, kind, primary_key=not at, autoincrement=False, nullable=False)
                    for at, (column, kind) in enumerate(columns)
                ),
            )
            for name, columns in TABLES.items()
        }  # fmt: skip
        self._compile()

    def _compile(self) -> None:
        dialect, meta = self._engine.dialect, self._meta
        row = meta.c.key == OWNER
        self._look = sa.select(meta.c.value).where(row)
        self._take = sa.update(meta).where(row).values(value=sa.bindparam("new"))
        self._step = self._take.where(meta.c.value == sa.bindparam("old"))
        self._delete: dict[str, _Statement] = {}
        self._insert: dict[str, _Statement] = {}
        for name, table in (*self._by_name.items(), (META, meta)):
            delete = sa.delete(table).where(_key(table) == sa.bindparam("k"))
            self._delete[name] = _Statement(delete, ("k",), dialect)
            self._insert[name] = _Statement(sa.insert(table), tuple(table.columns.keys()), dialect)

    # --- the store -------------------------------------------------------------------------------

    def check(self) -> None:
        """Whether it can be spoken to; nothing in it is changed.

        Raises:
            LedgerError: it cannot be opened. StoreAwayError: it is away.
        """
        try:
            self._patiently(lambda connection: connection.execute(sa.text("SELECT 1")), databases.is_hopeless)
        except SQLAlchemyError as error:
            raise databases.cannot_open(self._name, error) from error
        finally:
            self._disconnect()

    def claim(self) -> Claim:
        """Make the tables where there are none, become the owner, read everything: one transaction.

        Raises:
            LedgerError: it cannot be opened, or is damaged. StoreAwayError: it is away.
        """
        owner = secrets.token_bytes(8)

        def attempt(connection: sa.Connection) -> Claim:
            with connection.begin():
                if self._engine.dialect.name == "postgresql":
                    # Else two that come first would make the same tables.
                    connection.execute(_ONE_BY_ONE, {"name": f"shoestring {self._address.prefix}"})
                self._metadata.create_all(connection)
                # Before anything is read: from here on an earlier owner cannot commit in between.
                first = {"new": _mark(owner, 0)}
                if connection.execute(self._take, first).rowcount != 1:
                    self._insert[META].run(connection, [(OWNER, first["new"])])
                meta = {row.key: bytes(row.value) for row in connection.execute(sa.select(self._meta))}
                del meta[OWNER]
                return Claim(owner, meta, {name: _read(connection, t) for name, t in self._by_name.items()})

        try:
            claim = self._patiently(attempt, databases.is_hopeless)
        except SQLAlchemyError as error:
            raise databases.cannot_open(self._name, error) from error
        self._owner, self._count = owner, 0
        return claim

    def write(self, owner: bytes, changes: Changes) -> None:
        """One transaction, applied once, however often the database goes away within it.

        Raises:
            LedgerError: nothing was written: no space, or somebody else has claimed the store.
            StoreAwayError: it is away, and whether this was written shows when it is opened again.
        """
        if not self._owner:
            raise databases.cannot_write(self._name, "it is closed")
        if owner != self._owner:
            raise databases.taken_over(self._name)
        step = {"old": _mark(owner, self._count), "new": _mark(owner, self._count + 1)}

        def attempt(connection: sa.Connection) -> None:
            with connection.begin():
                # This takes the lock, so the owner cannot change before the end of the transaction. Where an
                # earlier try of ours is still under way at the server, it waits for how that ends.
                if connection.execute(self._step, step).rowcount == 1:
                    self._apply(connection, changes)
                    return
                found = connection.execute(self._look).scalar()
            if found is not None and bytes(found) == step["new"]:
                return  # an earlier try was applied, and only its answer was lost
            behind = found is not None and bytes(found)[: len(owner)] == owner
            raise (databases.set_back if behind else databases.taken_over)(self._name)

        try:
            self._patiently(attempt, lambda _: False)
        except SQLAlchemyError as error:
            raise databases.cannot_write(self._name, databases.reason(error)) from error
        self._count += 1

    def close(self) -> None:
        """Close the connection."""
        self._owner = b""
        self._disconnect()
        self._engine.dispose()

    # --- inside ------------------------------------------------------------------------------------

    def _apply(self, connection: sa.Connection, changes: Changes) -> None:
        for name, keys in changes.gone.items():
            self._delete[name].run(connection, [(key,) for key in keys])
        self._delete[META].run(connection, [(key,) for key in changes.meta])
        self._insert[META].run(connection, list(changes.meta.items()))
        for name, rows in changes.rows.items():
            self._insert[name].run(connection, rows)

    def _patiently(self, attempt: Callable[[sa.Connection], T], hopeless: Callable[[Any], bool]) -> T:
        """Try until the database is there.

        Raises:
            SQLAlchemyError: it is there, and something else is wrong; or it is `hopeless`.
            StoreAwayError: it has been away for too long.
        """
        until_s, pause_s, told = math.inf, FIRST_PAUSE_S, False
        while True:
            try:
                if self._connection is None:
                    self._connection = self._engine.connect()
                return attempt(self._connection)
            except SQLAlchemyError as error:
                if not databases.is_away(error) or hopeless(error):
                    raise
                self._disconnect()
                now, patience_s = self._clock.now(), self._address.patience_s
                if not told and not databases.is_contended(error):
                    told = True
                    self.told(databases.is_gone(self._name, patience_s, error))
                until_s = min(until_s, now + patience_s)
                if now >= until_s:
                    raise databases.away(self._name, patience_s, error) from error
            self._clock.sleep(min(pause_s, until_s - now))
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.close()
        except SQLAlchemyError:
            connection.invalidate()  # it was broken; nothing else is lost with it


class _Statement:
    """A statement compiled once: SQLAlchemy's own way costs several times the insert itself."""

    def __init__(self, clause: Any, names: tuple[str, ...], dialect: sa.Dialect) -> None:
        compiled = clause.compile(dialect=dialect)
        self._sql = str(compiled)
        self._names = names
        self._order: Sequence[int] | None = None
        if compiled.positional:
            self._order = [names.index(name) for name in compiled.positiontup]

    def run(self, connection: sa.Connection, rows: Iterable[Row]) -> None:
        """Execute it for each row; none: not at all."""
        parameters: list[Any]
        if self._order is not None:
            parameters = [tuple(row[at] for at in self._order) for row in rows]
        else:
            parameters = [dict(zip(self._names, row, strict=True)) for row in rows]
        if parameters:
            connection.exec_driver_sql(self._sql, parameters)


def _key(table: sa.Table) -> sa.Column[Any]:
    return table.columns[0]


def _mark(owner: bytes, count: int) -> bytes:
    """Who owns the store, and how often it has committed."""
    return owner + count.to_bytes(8)


def _read(connection: sa.Connection, table: sa.Table) -> list[Row]:
    return [tuple(row) for row in connection.execute(sa.select(table).order_by(_key(table)))]
