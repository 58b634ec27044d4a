"""Databases that a ledger can live in: their URLs, how they are spoken to, what their errors mean.

Source: ours.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from shoestring.base.errors import LedgerError, StoreAwayError, first_line

JOB, PATIENCE = "shoestring_job", "shoestring_patience_s"
"""Parameters of a URL that are ours; the database does not see them."""
MAX_PREFIX = 40
"""Characters; PostgreSQL's names have 63 at most."""
START_OVER = (
    "move it away: a resumed training run starts from its newest checkpoint, a job over rows starts anew"
)
_LIBPQ = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""A server whose machine is gone is noticed within half a minute, not within hours."""
_SESSION = (
    # Else a coordinator that is cut off in the middle of a commit keeps its successor out for hours.
    "SET idle_in_transaction_session_timeout = '30s'",
    # A server may be set to answer before a commit is durable; a ledger must not be believed then.
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') = 'off'",
)
_CONTENDED = frozenset({"40001", "40P01", "55P03"})
"""Somebody else was first; nothing was written."""
_AWAY = _CONTENDED | {
    "57P01", "57P02", "57P03",  # shut down, crashed, starting up
    "25006",  # read-only: a standby that is not in charge yet
    "53300",  # too many connections
}  # fmt: skip
_HOPELESS = (
    "does not exist",
    "authentication failed",
    "no pg_hba.conf entry",
    "permission denied",
    "failed to resolve host",
    "could not translate host name",
    "no password supplied",
)


@dataclass(frozen=True)
class Address:
    """Where a ledger is.

    Attributes:
        url: for SQLAlchemy.
        prefix: of the ledger's tables: each job has tables of its own.
        patience_s: how long a database may be away.
        shown: the URL without its password.
    """

    url: sa.URL
    prefix: str
    patience_s: float
    shown: str


def address(url: str, job: str, patience_s: float) -> Address:
    """Read a URL: `sqlite:///path`, `postgresql+psycopg://user@host/name`.

    `?shoestring_job=NAME` names the job whose ledger this is, among others in the same database;
    `?shoestring_patience_s=600` says how long the database may be away.

    Args:
        job, patience_s: where the URL does not say.

    Raises:
        LedgerError: it is no URL.
    """
    try:
        parsed = sa.engine.make_url(url)
    except (SQLAlchemyError, ValueError) as error:
        # The text is not shown: it is no URL, and yet may hold a password.
        raise cannot_open("that was given", error) from None
    query = dict(parsed.query)
    job = str(query.pop(JOB)) if JOB in query else job
    try:
        patience_s = float(str(query.pop(PATIENCE))) if PATIENCE in query else patience_s
    except ValueError as error:
        raise cannot_open(parsed.render_as_string(hide_password=True), error) from error
    parsed = parsed.set(query=query)
    return Address(parsed, prefix_of(job), patience_s, parsed.render_as_string(hide_password=True))


def prefix_of(job: str) -> str:
    """What the names of a job's tables begin with; nothing for no job.

    Example: `job_a1_` for `a1`; other names than short lower-case ones get a checksum, so that no two jobs
    share tables.
    """
    if not job:
        return ""
    plain = re.sub(r"[^a-z0-9_]", "_", job)
    if plain != job or len(plain) > MAX_PREFIX - len("job__"):
        digest = hashlib.sha256(job.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        plain = (
            f"{re.sub('[^a-z0-9_]', '_', job.lower())[: MAX_PREFIX - len('job___') - len(digest)]}_{digest}"
        )
    return f"job_{plain}_"


def engine_of(url: sa.URL) -> sa.Engine:
    """What speaks to a database; nothing is opened yet.

    Raises:
        SQLAlchemyError, ImportError, OSError: nobody can.
    """
    if url.get_backend_name() != "sqlite":
        return _server(url)
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, poolclass=sa.pool.StaticPool, connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def _settle(connection: sqlite3.Connection, _: object) -> None:
        for pragma in ("busy_timeout=5000", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _server(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        return sa.create_engine(url, poolclass=sa.pool.NullPool)
    asked = {key: value for key, value in _LIBPQ.items() if key not in url.query}
    engine = sa.create_engine(
        url, poolclass=sa.pool.NullPool, isolation_level="READ COMMITTED", connect_args=asked
    )

    @sa.event.listens_for(engine, "connect")
    def _settle(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for statement in _SESSION:
            cursor.execute(statement)
        cursor.close()
        connection.commit()

    return engine


# --- errors --------------------------------------------------------------------------------------------


def is_away(error: SQLAlchemyError) -> bool:
    """Whether the database may be back soon, and nothing is wrong with what was asked."""
    if not isinstance(error, sa.exc.DBAPIError) or isinstance(error.orig, sqlite3.Error):
        return False
    state = sql_state(error)
    if state is not None and not error.connection_invalidated:
        return state in _AWAY or state.startswith("08")
    return error.connection_invalidated or isinstance(error, sa.exc.OperationalError)


def is_contended(error: SQLAlchemyError) -> bool:
    """Whether somebody else was first, which the next try settles."""
    return isinstance(error, sa.exc.DBAPIError) and sql_state(error) in _CONTENDED


def is_hopeless(error: SQLAlchemyError) -> bool:
    """Whether waiting for a first connection makes no sense: the address or the rights are wrong."""
    return any(words in reason(error) for words in _HOPELESS)


def sql_state(error: sa.exc.DBAPIError) -> str | None:
    """The five characters by which SQL calls an error; None where there are none."""
    # A connection that does not come about has no state, and other drivers than psycopg may have no such
    # attribute at all.
    return error.orig.sqlstate if hasattr(error.orig, "sqlstate") else None  # type: ignore[union-attr]


def reason(error: Exception) -> str:
    """An error in one line."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    return first_line(cause)


def cannot_open(name: str, error: Exception) -> LedgerError:
    """The error of a store that cannot be opened."""
    return LedgerError(
        f"cannot open the ledger's store {name}: {reason(error)}",
        f"check the path or URL; if it is damaged, {START_OVER}",
    )


def cannot_write(name: str, why: str) -> LedgerError:
    """The error of a store that cannot be written."""
    what = f"cannot write the ledger's store {name}: {why}"
    return LedgerError(what, "free some space, then resume the run")


def taken_over(name: str) -> LedgerError:
    """The error of an owner that is not the newest."""
    return LedgerError(
        f"another coordinator has taken over the ledger's store {name}",
        f"leave the run to the newer one, or stop that and resume; another job in the same database needs "
        f"another name in its URL: ?{JOB}=NAME",
    )


def set_back(name: str) -> LedgerError:
    """The error of a database that has lost commits that it had confirmed."""
    return LedgerError(
        f"the ledger's store {name} has lost commits that it had confirmed: it was restored from a copy that "
        "was behind",
        "let its standbys be synchronous; resume the run, and remove the files of output that it names then",
    )


def is_gone(name: str, patience_s: float, error: Exception) -> str:
    """That a database has gone away, and what is done about it."""
    return (
        f"the ledger's store {name} is away, nothing is counted meanwhile: trying again for up to "
        f"{patience_s:g} s ({reason(error)})"
    )


def away(name: str, patience_s: float, error: Exception) -> StoreAwayError:
    """The error of a database that has been away for too long."""
    return StoreAwayError(
        f"the ledger's store {name} has been away for {patience_s:g} s: {reason(error)}",
        f"bring the database back, then resume the run: what was committed stays; for longer patience add "
        f"?{PATIENCE}=SECONDS to the ledger's URL",
    )
