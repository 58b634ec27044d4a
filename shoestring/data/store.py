"""The durable ledger: deltas of the pure state machine, written in one transaction (source: ours).

SQLite in WAL mode with full synchronisation by default; any database that SQLAlchemy speaks by URL.
Operations change memory at once and gather what they touched; `commit` makes all of it durable
together. Whoever answers clients answers after `commit`, so one transaction serves many of them.
"""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from shoestring.base.errors import LedgerError
from shoestring.data.ledger import Lease, Ledger, LedgerSpec, Letter, Snapshot
from shoestring.data.ranges import Range

METADATA = sa.MetaData()
META = sa.Table(
    "meta", METADATA, sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.LargeBinary, nullable=False)
)
LEASES = sa.Table(
    "leases", METADATA,
    sa.Column("lease_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.String(200), nullable=False), sa.Column("tag", sa.BigInteger, nullable=False),
    sa.Column("expires_s", sa.Float(53), nullable=False), sa.Column("ranges", sa.LargeBinary, nullable=False),
)
RETURNED = sa.Table(
    "returned", METADATA,
    sa.Column("start", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stop", sa.BigInteger, nullable=False),
)
LETTERS = sa.Table(
    "letters", METADATA,
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attempts", sa.Integer, nullable=False), sa.Column("dead", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
)
TABLES = (META, LEASES, RETURNED, LETTERS)


class DurableLedger(Ledger):
    """A Ledger whose state survives the process.

    Made by `open`. One process at a time writes: the newest to open the store owns it, and an
    older owner's next commit is refused.
    """

    def __init__(self, spec: LedgerSpec) -> None:
        super().__init__(spec)
        self._engine: sa.Engine | None = None
        self._owner = b""
        self._meta: dict[str, bytes] = {}
        self._dirty_meta: set[str] = set()
        self._written_head: tuple[int, int] = (0, 1)
        self._stored: set[int] = set()  # leases that have a row
        self._broken = ""

    # --- opening and closing -------------------------------------------------------------------

    @classmethod
    def open(cls, url: str, spec: LedgerSpec) -> DurableLedger:
        """The ledger at a database URL, as it was last committed; a new one where there is none.

        Raises:
            LedgerError: the store cannot be opened, is damaged, or is about other data.
        """
        engine = _engine(url)
        try:
            with engine.begin() as connection:
                METADATA.create_all(connection)
                meta = {row.key: bytes(row.value) for row in connection.execute(sa.select(META))}
                ledger = cls._load(connection, spec, meta, url)
                ledger._engine = engine
                ledger._owner = secrets.token_bytes(8)
                _upsert_meta(connection, {"owner": ledger._owner, "spec": msgspec.msgpack.encode(spec),
                                          "head": _head(ledger)})
        except (SQLAlchemyError, msgspec.DecodeError) as error:
            raise LedgerError(
                f"cannot open the ledger {engine.url!r}: {_reason(error)}",
                "check the path or URL; if the store is damaged, restore it or resume from a copy of the run",
            ) from error
        return ledger

    @classmethod
    def _load(cls, connection: sa.Connection, spec: LedgerSpec, meta: dict[str, bytes], url: str) -> DurableLedger:
        ledger = cls(spec)
        ledger._meta = {key: value for key, value in meta.items() if key not in ("owner", "spec", "head")}
        if "spec" not in meta:
            return ledger
        stored = msgspec.msgpack.decode(meta["spec"], type=LedgerSpec)
        frontier, next_id = msgspec.msgpack.decode(meta["head"], type=tuple[int, int])
        leases = [
            Lease(r.lease_id, r.holder, r.tag, r.expires_s, msgspec.msgpack.decode(bytes(r.ranges), type=list[Range]))
            for r in connection.execute(sa.select(LEASES).order_by(LEASES.c.lease_id))
        ]
        returned = [(r.start, r.stop) for r in connection.execute(sa.select(RETURNED).order_by(RETURNED.c.start))]
        letters = [Letter(*row) for row in connection.execute(sa.select(LETTERS))]
        if stored.order != spec.order:
            raise LedgerError(
                f"the ledger at {url} is about {stored.order}, the run about {spec.order}",
                "resume with the data and the seed that the run was started with, or start a new run",
            )
        ledger._take(Ledger.restore(spec, Snapshot(spec, frontier, next_id, returned, leases, letters)))
        ledger._written_head = (frontier, next_id)
        ledger._stored = {lease.lease_id for lease in leases}
        ledger.check()
        return ledger

    def close(self) -> None:
        """Let go of the database; what was not committed is gone."""
        if self._engine is not None:
            self._engine.dispose()

    def __enter__(self) -> DurableLedger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- beside the samples ----------------------------------------------------------------------

    def put_meta(self, key: str, value: bytes) -> None:
        """Keep a value, durable with the next commit."""
        self._meta[key] = value
        self._dirty_meta.add(key)

    def get_meta(self, key: str) -> bytes | None:
        """A kept value."""
        return self._meta[key] if key in self._meta else None

    # --- going back --------------------------------------------------------------------------------

    def replace(self, snapshot: bytes) -> None:
        """Go to the state of a snapshot (roll back to a checkpoint), durable with the next commit.

        Raises:
            LedgerError: the snapshot is damaged or about other data.
        """
        self._become(Ledger.restore(self.spec, snapshot))

    def reset(self) -> None:
        """Go back to the beginning, durable with the next commit."""
        self._become(Ledger(self.spec))

    def _become(self, other: Ledger) -> None:
        leases = {lease.lease_id for lease in self.leases()} | self.touched_leases
        starts = {start for start, _ in self._returned} | self._returned.touched
        letters = set(self._letters) | self.touched_letters
        next_id = self._next_id
        self._take(other)
        # Ids of the abandoned timeline are never used again: a late report must not meet a new lease.
        self._next_id = max(self._next_id, next_id)
        self.touched_leases = leases | {lease.lease_id for lease in self.leases()}
        self._returned.touched = starts | {start for start, _ in self._returned}
        self.touched_letters = letters | set(self._letters)

    def _take(self, other: Ledger) -> None:
        for name in ("_frontier", "_next_id", "_returned", "_leases", "_by_tag", "_letters", "_doing", "_dead",
                     "_completed", "_earliest_s"):
            setattr(self, name, getattr(other, name))

    # --- commit --------------------------------------------------------------------------------------

    def commit(self) -> bool:
        """Make all operations since the last commit durable, in one transaction.

        Returns:
            Whether there was anything to write.

        Raises:
            LedgerError: the store cannot be written (full disk) or has another owner. The ledger
                refuses all further commits, since memory is ahead of the store: open it anew.
        """
        if self._broken:
            raise LedgerError(f"the ledger's store failed before: {self._broken}", "free some space, then resume the run")
        head = (self._frontier, self._next_id)
        clean = head == self._written_head and not self._dirty_meta
        if clean and not (self.touched_leases or self.touched_letters or self._returned.touched):
            return False
        assert self._engine is not None
        try:
            with self._engine.begin() as connection:
                self._write(connection)
        except SQLAlchemyError as error:
            self._broken = _reason(error)
            raise LedgerError(
                f"cannot write the ledger {self._engine.url!r}: {self._broken}", "free some space, then resume the run"
            ) from error
        self._written_head = head
        self._dirty_meta.clear()
        self._stored.difference_update(self.touched_leases)
        self._stored.update(self.touched_leases & self._leases.keys())
        self._forget_touched()
        return True

    def _write(self, connection: sa.Connection) -> None:
        owner = connection.execute(_OWNER).scalar_one()
        if bytes(owner) != self._owner:
            raise sa.exc.InvalidRequestError("another coordinator has taken over this ledger")
        _upsert_meta(connection, {"head": _head(self)} | {key: self._meta[key] for key in self._dirty_meta})
        ids = [{"k": i} for i in self.touched_leases & self._stored]
        rows = [_lease_row(self._leases[i]) for i in self.touched_leases if i in self._leases]
        _swap(connection, _DELETE_LEASE, ids, LEASES, rows)
        starts = [{"k": s} for s in self._returned.touched]
        stops = [(s, self._returned.stop_of(s)) for s in self._returned.touched]
        _swap(connection, _DELETE_RETURNED, starts, RETURNED, [{"start": a, "stop": b} for a, b in stops if b is not None])
        positions = [{"k": p} for p in self.touched_letters]
        letters = [msgspec.structs.asdict(self._letters[p]) for p in self.touched_letters if p in self._letters]
        _swap(connection, _DELETE_LETTER, positions, LETTERS, letters)


_OWNER = sa.select(META.c.value).where(META.c.key == "owner")
_DELETE_META = sa.delete(META).where(META.c.key == sa.bindparam("k"))
_DELETE_LEASE = sa.delete(LEASES).where(LEASES.c.lease_id == sa.bindparam("k"))
_DELETE_RETURNED = sa.delete(RETURNED).where(RETURNED.c.start == sa.bindparam("k"))
_DELETE_LETTER = sa.delete(LETTERS).where(LETTERS.c.position == sa.bindparam("k"))


def _engine(url: str) -> sa.Engine:
    parsed = sa.engine.make_url(url)
    if not parsed.drivername.startswith("sqlite"):
        return sa.create_engine(parsed)
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _settle(connection: Any, _: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "wal_autocheckpoint=1000"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _swap(
    connection: sa.Connection, delete: sa.Delete, keys: list[dict[str, int]], table: sa.Table, rows: list[dict[str, Any]]
) -> None:
    """Replace rows by key: the same statements on every database."""
    if keys:
        connection.execute(delete, keys)
    if rows:
        connection.execute(sa.insert(table), rows)


def _upsert_meta(connection: sa.Connection, values: dict[str, bytes]) -> None:
    _swap(connection, _DELETE_META, [{"k": key} for key in values], META,  # type: ignore[arg-type, list-item, misc]
          [{"key": key, "value": value} for key, value in values.items()])


def _head(ledger: Ledger) -> bytes:
    return msgspec.msgpack.encode((ledger._frontier, ledger._next_id))


def _lease_row(lease: Lease) -> dict[str, Any]:
    expires_s = lease.expires_s if math.isfinite(lease.expires_s) else 0.0
    return {"lease_id": lease.lease_id, "holder": lease.holder, "tag": lease.tag, "expires_s": expires_s,
            "ranges": msgspec.msgpack.encode(lease.ranges)}


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
