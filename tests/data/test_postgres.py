"""The ledger on a real PostgreSQL server: who writes, and what becomes of commits while the server dies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from shoestring.base.clock import FakeClock, SystemClock
from shoestring.base.errors import LedgerError, StoreAwayError
from shoestring.data import databases
from shoestring.data.ledger import LedgerSpec
from shoestring.data.output_state import Output, Staged
from shoestring.data.store import DurableLedger
from shoestring.data.stores import Changes, SqlStore
from tests.data.postgres import MISSING, Server, binaries, free_port

pytestmark = pytest.mark.xdist_group("postgresql")

SPEC = LedgerSpec(samples=100_000, shuffle="none", max_dead_share=1.0)
DEADLINE_S = 100.0


@pytest.fixture
def url(postgres: Server, request: pytest.FixtureRequest) -> str:
    """A database of this test's own."""
    return postgres.new_database(f"t{abs(hash(request.node.name)) % 10**8}")


def put(key: str, value: bytes) -> Changes:
    return Changes({key: value}, {}, {})


# --- who writes --------------------------------------------------------------------------------------------


def test_jobs_share_a_database_and_do_not_meet(url: str) -> None:
    names = ["", "a", "A", "a-b", "a_b", "x" * 80, "x" * 81, "ü"]
    for number, name in enumerate(names):
        with DurableLedger.open(url, SPEC, name) as ledger:
            assert ledger.get_meta("who") is None
            ledger.put_meta("who", b"%d" % number)
            ledger.commit()
    for number, name in enumerate(names):
        where = f"{url}&shoestring_job={name}" if name and name.isascii() else url
        with DurableLedger.open(where, SPEC, name) as ledger:
            assert ledger.get_meta("who") == b"%d" % number
    with sa.create_engine(url).connect() as connection:
        tables = sa.inspect(connection).get_table_names()
    assert len(tables) == 7 * len(names) and max(map(len, tables)) <= 63 and "job_a_leases" in tables


def test_the_second_claimer_wins_whatever_the_first_is_doing(url: str) -> None:
    """Two claim at the same time again and again, and each writes as long as it may: nobody's confirmed
    change is written over by who does not own the store, and at the end one owns it."""
    stores = [SqlStore(url) for _ in range(3)]
    confirmed: list[list[bytes]] = [[], [], []]
    refused = [0, 0, 0]
    problems: list[BaseException] = []
    gate = threading.Barrier(3)

    def life(number: int) -> None:
        try:
            store, rng = stores[number], random.Random(number)
            gate.wait(DEADLINE_S)
            for _ in range(12):
                claim = store.claim()
                for step in range(rng.randint(1, 12)):
                    # Each adds one to what it has read, or has written itself.
                    count = int(claim.meta["count"]) if "count" in claim.meta else 0
                    value = b"%d" % (count + step + 1)
                    try:
                        store.write(claim.owner, put("count", value))
                    except LedgerError as error:
                        assert "another coordinator has taken over" in error.what
                        refused[number] += 1
                        break
                    confirmed[number].append(value)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=life, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not problems and not any(thread.is_alive() for thread in threads)
    everything = sorted(int(value) for one in confirmed for value in one)
    assert everything == list(range(1, len(everything) + 1)), "none lost, none written over"
    assert sum(refused) > 0
    for store in stores:
        store.close()


def test_a_claimer_waits_for_a_commit_that_is_under_way(postgres: Server, url: str) -> None:
    old, new = SqlStore(url), SqlStore(url)
    owner = old.claim().owner
    old.write(owner, put("a", b"1"))
    with postgres.connect(sa.make_url(url).database or "") as slow:
        slow.execute("BEGIN")
        slow.execute("UPDATE meta SET value = value WHERE key = 'owner'")  # as far as a commit has come
        found: list[Any] = []
        claimer = threading.Thread(target=lambda: found.append(new.claim()))
        claimer.start()
        claimer.join(0.5)
        assert claimer.is_alive() and not found
        slow.execute("INSERT INTO meta VALUES ('b', '2')")
        slow.execute("COMMIT")
    claimer.join(DEADLINE_S)
    assert found[0].meta == {"a": b"1", "b": b"2"}, "what was under way is seen"
    with pytest.raises(LedgerError, match="taken over"):
        old.write(owner, put("a", b"3"))
    for store in (old, new):
        store.close()


def test_two_that_come_first_make_one_set_of_tables(url: str) -> None:
    stores = [SqlStore(url, "fresh") for _ in range(4)]
    gate, problems = threading.Barrier(4), []

    def claim(store: SqlStore) -> None:
        gate.wait(DEADLINE_S)
        try:
            store.claim()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=claim, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not problems
    for store in stores:
        store.close()


def test_any_bytes_and_texts_come_back(url: str) -> None:
    raw = bytes(range(256)) * 3 + b"%s %(a)s \\x \x00"
    with DurableLedger.open(url, SPEC) as ledger:
        ledger.put_meta("raw", raw)
        lease = ledger.lease(0.0, "wörker %s:b'", 10)
        assert lease is not None
        ledger.fail(0.0, lease.lease_id, {0: "NUL \0, half a pair \ud800, %s, ü"})
        for n in range(50):
            staged = Staged(f"s{n}", 4, 1, 10, "ab", {"kind %s: ü": 1}, {"x": 2}, {"first_error": "e"})
            ledger.add_output(Output(2**33 + n, f"part-{n}", ((4 * n, 4 * n + 4),), staged))
        ledger.commit()
        wanted = ledger.outputs()
    with DurableLedger.open(url, SPEC) as ledger:
        assert ledger.get_meta("raw") == raw and ledger.outputs() == wanted
        assert next(iter(ledger.leases())).holder == "wörker %s:b'"
        (letter,) = ledger.snapshot().letters
        assert letter.error == "NUL \\0, half a pair \\ud800, %s, ü"


# --- the server goes away ----------------------------------------------------------------------------------


class Watched(FakeClock):
    """A clock that does something while somebody waits by it."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._meanwhile = meanwhile

    def sleep(self, duration_s: float) -> None:
        self._meanwhile()
        super().sleep(duration_s)


def test_a_server_that_comes_back_in_time_is_waited_for(postgres: Server, url: str) -> None:
    sleeps: list[float] = []

    def meanwhile() -> None:
        sleeps.append(clock.now())
        if len(sleeps) == 5:
            postgres.start()

    clock = Watched(meanwhile)
    store = SqlStore(url, clock=clock)
    owner = store.claim().owner
    store.write(owner, put("a", b"1"))
    postgres.kill()
    store.write(owner, put("a", b"2"))
    assert len(sleeps) == 5 and clock.now() < 60.0
    store.write(owner, put("b", b"3"))
    sleeps.clear()
    postgres.kill()
    assert store.claim().meta == {"a": b"2", "b": b"3"} and len(sleeps) == 5
    store.close()


def test_patience_ends(postgres: Server, url: str) -> None:
    clock = FakeClock()
    store = SqlStore(f"{url}&shoestring_patience_s=7.5", clock=clock)
    owner = store.claim().owner
    postgres.kill()
    try:
        for ask in (lambda: store.write(owner, put("a", b"1")), store.claim):
            started = clock.now()
            with pytest.raises(StoreAwayError, match="(?s)has been away for 7.5 s.*bring the database back"):
                ask()
            assert clock.now() - started == pytest.approx(7.5)
        ledger_clock = FakeClock()
        with pytest.raises(StoreAwayError):
            DurableLedger.open(SqlStore(url, patience_s=1.0, clock=ledger_clock), SPEC)
    finally:
        postgres.start()
    store.write(store.claim().owner, put("a", b"1"))
    store.close()


def test_a_ledger_whose_store_was_away_says_what_to_do(postgres: Server, url: str) -> None:
    ledger = DurableLedger.open(SqlStore(url, patience_s=1.0, clock=FakeClock()), SPEC)
    ledger.lease(0.0, "w", 5)
    postgres.kill()
    try:
        with pytest.raises(StoreAwayError):
            ledger.commit()
        with pytest.raises(LedgerError, match="(?s)refuses.*bring the database back"):
            ledger.lease(0.0, "w", 5)
    finally:
        postgres.start()
        ledger.close()


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_whose_answer_was_lost_counts_once(
    url: str, applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqlStore(url, clock=FakeClock())
    owner = store.claim().owner
    store.write(owner, put("n", b"0"))
    assert store._connection is not None
    lost = []

    def commit(real: psycopg.Connection[Any]) -> None:
        if not lost:
            lost.append(True)
            if applied:
                psycopg.Connection.commit(real)
            real.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        psycopg.Connection.commit(real)

    real: Any = store._connection.connection.dbapi_connection
    monkeypatch.setattr(real, "commit", lambda: commit(real))
    insert = {"leases": [(1, "w", 0, b"x")]}
    store.write(
        owner, Changes({"n": b"1"}, {"leases": []}, insert)
    )  # applied twice, it would violate the key
    assert lost
    store.write(owner, Changes({"n": b"2"}, {"leases": []}, {"leases": [(2, "w", 0, b"y")]}))
    claim = store.claim()
    assert claim.meta == {"n": b"2"} and [row[0] for row in claim.rows["leases"]] == [1, 2]
    store.close()


def test_an_owner_that_was_away_does_not_write_over_the_new_one(postgres: Server, url: str) -> None:
    successors: list[SqlStore] = []

    def meanwhile() -> None:
        if not successors:
            postgres.start()
            successors.append(SqlStore(url))
            successors[0].write(successors[0].claim().owner, put("a", b"new"))

    store = SqlStore(url, clock=Watched(meanwhile))
    owner = store.claim().owner
    postgres.kill()
    with pytest.raises(LedgerError, match="taken over"):
        store.write(owner, put("a", b"old"))
    assert successors[0].claim().meta == {"a": b"new"}
    for one in (store, *successors):
        one.close()


def test_a_database_that_forgot_commits_is_found_out(postgres: Server, url: str) -> None:
    """As after a failover to a standby that was behind."""
    store = SqlStore(url)
    owner = store.claim().owner
    for n in range(3):
        store.write(owner, put("n", b"%d" % n))
    with postgres.connect(sa.make_url(url).database or "") as other:
        other.execute("UPDATE meta SET value = %s WHERE key = 'owner'", (owner + (1).to_bytes(8),))
    with pytest.raises(LedgerError, match="(?s)lost commits that it had confirmed.*synchronous"):
        store.write(owner, put("n", b"3"))
    store.close()


def test_a_server_that_is_read_only_for_a_while_is_waited_for(postgres: Server, url: str) -> None:
    """As a standby is until it is promoted."""
    database = sa.make_url(url).database or ""

    def read_only(on: bool) -> None:
        with postgres.connect() as other:
            other.execute(f'ALTER DATABASE "{database}" SET default_transaction_read_only = {on}')  # type: ignore[arg-type]
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database,)
            )

    store = SqlStore(url, clock=Watched(lambda: read_only(False)))
    owner = store.claim().owner
    read_only(True)
    store.write(owner, put("a", b"1"))
    assert store.claim().meta == {"a": b"1"}
    store.close()


def test_what_is_wrong_for_good_is_not_waited_for(url: str) -> None:
    clock = FakeClock()
    store = SqlStore(url, clock=clock)
    owner = store.claim().owner
    row = Changes({}, {"leases": []}, {"leases": [(1, "w", 0, b"x")]})
    store.write(owner, row)
    with pytest.raises(LedgerError, match="cannot write.*duplicate key") as caught:
        store.write(owner, row)
    assert not isinstance(caught.value, StoreAwayError) and clock.now() == 0.0
    assert store.claim().rows["leases"] == [(1, "w", 0, b"x")]
    store.close()


def test_a_wrong_address_is_told_at_once(postgres: Server) -> None:
    clock = FakeClock()
    for url, said in (
        (postgres.url("nosuchdb"), 'database "nosuchdb" does not exist'),
        (postgres.url().replace("shoestring@", "nobody:secret@"), 'role "nobody" does not exist'),
        ("postgresql+psycopg://me:secret@no.such.host.invalid/x", "no.such.host.invalid"),
    ):
        with pytest.raises(LedgerError, match=f"(?s)cannot open.*{said}") as caught:
            SqlStore(url, clock=clock).claim()
        assert "secret" not in str(caught.value)
    assert clock.now() == 0.0


def test_what_our_urls_say() -> None:
    found = databases.address("postgresql+psycopg://u:pw@h/d?shoestring_job=J&sslmode=require", "other", 60.0)
    assert found.prefix == databases.prefix_of("J") != databases.prefix_of("j") == "job_j_"
    assert found.url.query == {"sslmode": "require"} and "pw" not in found.shown and found.patience_s == 60.0
    assert databases.address("sqlite:///x?shoestring_patience_s=5", "other", 60.0).patience_s == 5.0
    with pytest.raises(LedgerError, match="cannot open"):
        databases.address("sqlite:///x?shoestring_patience_s=soon", "", 60.0)


def test_a_server_that_answers_early_is_made_to_wait_for_the_disk(postgres: Server, url: str) -> None:
    database = sa.make_url(url).database or ""
    with postgres.connect() as other:
        other.execute(f'ALTER DATABASE "{database}" SET synchronous_commit = off')  # type: ignore[arg-type]
    store = SqlStore(url)
    store.claim()
    assert store._connection is not None
    asked = store._connection.exec_driver_sql("SHOW synchronous_commit").scalar_one()
    store._connection.rollback()
    assert asked == "on"
    store.close()


# --- kills -------------------------------------------------------------------------------------------------


@pytest.fixture
def mortal() -> Iterator[Server]:
    """A server on loopback that only this test kills."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = Server(free_port())
    server.start()
    yield server
    server.close()


@pytest.mark.faults
def test_a_server_killed_in_the_middle_of_commits_loses_and_doubles_nothing(mortal: Server) -> None:
    """A thread leases and completes; each commit is numbered in its own transaction. The server is killed at
    random moments and comes back, sometimes after a while."""
    ledger = DurableLedger.open(SqlStore(mortal.url(), patience_s=80.0, clock=SystemClock()), SPEC)
    stop, problems = threading.Event(), []
    commits = 0

    def write() -> None:
        nonlocal commits
        try:
            while not stop.is_set():
                lease = ledger.lease(0.0, "w", 3)
                assert lease is not None
                ledger.commit()
                ledger.complete(0.0, lease.lease_id, "w")
                staged = Staged("s", 3)
                ledger.add_output(Output(lease.lease_id, "part", tuple(lease.ranges), staged))
                ledger.put_meta("n", b"%d" % (commits + 1))
                ledger.commit()
                commits += 1
        except BaseException as error:
            problems.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    rng, clock = random.Random(5), SystemClock()
    for turn in range(10):
        before, until_s = commits, clock.now() + DEADLINE_S
        while commits < before + 5 and not problems and clock.now() < until_s:
            clock.sleep(0.01)
        clock.sleep(rng.uniform(0.0, 0.05))
        mortal.kill()
        clock.sleep(0.2 * (turn % 2))
        mortal.start()
    stop.set()
    writer.join(DEADLINE_S)
    assert not problems and not writer.is_alive() and commits >= 50
    kept = ledger.snapshot_bytes()
    ledger.close()
    with DurableLedger.open(mortal.url(), SPEC) as again:
        assert again.get_meta("n") == b"%d" % commits and again.snapshot_bytes() == kept
        assert len(again.outputs()) == commits and again.counts().done == 3 * commits
        seen = [at for one in again.outputs() for start, end in one.ranges for at in range(start, end)]
        assert sorted(seen) == list(range(3 * commits))
