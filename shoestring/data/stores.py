"""Where a ledger's rows live: any database that SQLAlchemy Core speaks, or memory (source: ours).

SQLite in WAL mode with full synchronisation is the default: a commit that returned has reached
the disk. Statements are plain deletes and inserts, the same for every database.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from shoestring.base.errors import LedgerError

Row = tuple[Any, ...]
Rows = dict[str, list[Row]]
OWNER = "owner"


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


METADATA = sa.MetaData()
META = sa.Table(
    "meta", METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)  # fmt: skip


def _table(name: str, key: str, *columns: sa.Column[Any]) -> sa.Table:
    first = sa.Column(key, sa.BigInteger, primary_key=True, autoincrement=False)
    return sa.Table(name, METADATA, first, *columns)


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False)


# The first column is the key.
TABLES = (
    _table("leases", "lease_id", sa.Column("holder", sa.Text, nullable=False), _number("tag"),
           sa.Column("ranges", sa.LargeBinary, nullable=False)),
    _table("returned", "start", _number("stop")),
    _table("letters", "position", _number("attempts"), _number("dead"),
           sa.Column("error", sa.Text, nullable=False)),
    _table("suspects", "start", _number("stop"), _number("losses")),
    _table("lost", "start", _number("stop")),
    _table("outputs", "lease_id", sa.Column("output", sa.LargeBinary, nullable=False)),
)  # fmt: skip


class MemoryStore:
    """A store in memory: what was written survives the ledgers on it. The fake of `SqlStore`.

    Attributes:
        full: makes each write fail, as a full disk does.
    """

    def __init__(self) -> None:
        self.full = False
        self._claims = 0
        self._meta: dict[str, bytes] = {}
        self._rows: dict[str, dict[int, Row]] = {table.name: {} for table in TABLES}

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
            raise _taken_over("in memory")
        if self.full:
            raise _cannot_write("in memory", "no space left")
        for name, rows in changes.rows.items():
            doubled = {row[0] for row in rows} & (self._rows[name].keys() - set(changes.gone[name]))
            if doubled:
                raise _cannot_write("in memory", f"two rows for {name} {sorted(doubled)[:5]}")
        self._meta |= changes.meta
        for name, keys in changes.gone.items():
            for key in keys:
                self._rows[name].pop(key, None)
        for name, rows in changes.rows.items():
            self._rows[name].update((row[0], row) for row in rows)

    def close(self) -> None:
        """Nothing to let go of."""


class SqlStore:
    """A store in a database.

    Args:
        url: as SQLAlchemy reads it: `sqlite:///path`, `postgresql+psycopg://user@host/name`.

    Raises:
        LedgerError: the URL names no database that can be spoken to.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.engine.make_url(url)
        except SQLAlchemyError as error:
            # The text is not shown: it is no URL, and yet may hold a password.
            raise _cannot_open("that was given", error) from None
        self._name = parsed.render_as_string(hide_password=True)
        try:
            self._engine = _engine(parsed)
        except (SQLAlchemyError, ImportError, OSError) as error:
            raise _cannot_open(self._name, error) from error
        self._connection: sa.Connection | None = None
        dialect = self._engine.dialect
        owned = sa.update(META).where(META.c.key == OWNER, META.c.value == sa.bindparam("owner"))
        self._keep_owner = owned.values(value=sa.bindparam("owner"))
        self._delete: dict[str, _Statement] = {}
        self._insert: dict[str, _Statement] = {}
        for table in (*TABLES, META):
            delete = sa.delete(table).where(_key(table) == sa.bindparam("k"))
            self._delete[table.name] = _Statement(delete, ("k",), dialect)
            self._insert[table.name] = _Statement(sa.insert(table), tuple(table.columns.keys()), dialect)

    def claim(self) -> Claim:
        """Make the tables where there are none, become the owner, read everything: one transaction.

        Raises:
            LedgerError: it cannot be opened, or is damaged.
        """
        owner = secrets.token_bytes(8)
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            with self._connection.begin():
                METADATA.create_all(self._connection)
                # Written before anything is read: from here on an earlier owner cannot commit in between.
                self._delete[META.name].run(self._connection, [(OWNER,)])
                self._insert[META.name].run(self._connection, [(OWNER, owner)])
                meta = {row.key: bytes(row.value) for row in self._connection.execute(sa.select(META))}
                rows = {table.name: self._read(table) for table in TABLES}
        except SQLAlchemyError as error:
            raise _cannot_open(self._name, error) from error
        del meta[OWNER]
        return Claim(owner, meta, rows)

    def write(self, owner: bytes, changes: Changes) -> None:
        """One transaction.

        Raises:
            LedgerError: nothing was written: no space, or somebody else has claimed the store.
        """
        connection = self._connection
        if connection is None:
            raise _cannot_write(self._name, "it is closed")
        try:
            with connection.begin():
                # This takes the lock, so the owner cannot change before the end of the transaction.
                if connection.execute(self._keep_owner, {"owner": owner}).rowcount != 1:
                    raise _taken_over(self._name)
                for name, keys in changes.gone.items():
                    self._delete[name].run(connection, [(key,) for key in keys])
                self._delete[META.name].run(connection, [(key,) for key in changes.meta])
                self._insert[META.name].run(connection, list(changes.meta.items()))
                for name, rows in changes.rows.items():
                    self._insert[name].run(connection, rows)
        except SQLAlchemyError as error:
            raise _cannot_write(self._name, _reason(error)) from error

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._engine.dispose()

    def _read(self, table: sa.Table) -> list[Row]:
        assert self._connection is not None
        return [tuple(row) for row in self._connection.execute(sa.select(table).order_by(_key(table)))]


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


def _engine(url: sa.URL) -> sa.Engine:
    if not url.drivername.startswith("sqlite"):
        return sa.create_engine(url)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _settle(connection: sqlite3.Connection, _: object) -> None:
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _reason(error: Exception) -> str:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    return str(cause).splitlines()[0] if str(cause) else type(cause).__name__


def _cannot_open(name: str, error: Exception) -> LedgerError:
    return LedgerError(
        f"cannot open the ledger's store {name}: {_reason(error)}",
        "check the path or URL; a damaged store moved away, a resumed run starts from its newest checkpoint",
    )


def _cannot_write(name: str, reason: str) -> LedgerError:
    what = f"cannot write the ledger's store {name}: {reason}"
    return LedgerError(what, "free some space, then resume the run")


def _taken_over(name: str) -> LedgerError:
    return LedgerError(
        f"another coordinator has taken over the ledger's store {name}",
        "leave the run to the newer one, or stop that and resume",
    )
