"""Durable ledgers: one suite for every store, and what only a database can go through."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from shoestring.base.errors import LedgerError
from shoestring.data.ledger import LedgerSpec, Outcome
from shoestring.data.ranges import RangeSet
from shoestring.data.store import DurableLedger
from shoestring.data.stores import MemoryStore, SqlStore, Store

SAMPLES = 5000
SPEC = LedgerSpec(samples=SAMPLES, max_dead_share=1.0, max_attempts=2)
DEADLINE_S = 60.0
BATCH = 20  # operations of one commit in WRITER

Opener = Callable[[LedgerSpec], DurableLedger]


@pytest.fixture(
    params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.xdist_group("postgresql"))]
)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same store again and again."""
    memory = MemoryStore()
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        url = f"{server.url()}&shoestring_job={tmp_path.name}"
    opened: list[DurableLedger] = []

    def open_(spec: LedgerSpec) -> DurableLedger:
        where: str | Store = memory if request.param == "memory" else url
        opened.append(DurableLedger.open(where, spec))
        return opened[-1]

    yield open_
    for ledger in opened:
        ledger.close()


def take(ledger: DurableLedger, count: int, holder: str = "a", tag: int = 0) -> int:
    lease = ledger.lease(0.0, holder, count, tag)
    assert lease is not None
    return lease.lease_id


def shuffle_about(ledger: DurableLedger, seed: int) -> None:
    """Some of everything, so that each table has rows."""
    rng = random.Random(seed)
    for step in range(1, 40):
        lease_id = take(ledger, rng.randint(1, 20), rng.choice("abc"), tag=rng.choice((0, 0, step)))
        lease = next(le for le in ledger.leases() if le.lease_id == lease_id)
        action = rng.choice(("complete", "fail", "release", "keep"))
        if action == "complete":
            ledger.complete(0.0, lease_id, lease.holder)
        elif action == "fail":
            ledger.fail(0.0, lease_id, {lease.ranges[0][0]: "bad: ünreadable"})
        elif action == "release":
            ledger.release(lease_id)
        if step % 13 == 0:
            ledger.release_holder("b")


def test_what_was_committed_is_what_is_opened(opener: Opener) -> None:
    ledger = opener(SPEC)
    for seed in range(4):
        shuffle_about(ledger, seed)
        assert ledger.commit() and not ledger.commit()
        kept = ledger.snapshot_bytes()
        take(ledger, 5)  # never committed
        ledger = opener(SPEC)
        assert ledger.snapshot_bytes() == kept
    state = ledger.snapshot()
    assert state.returned and state.leases and state.letters and state.suspects and state.lost


def test_a_lease_that_lost_a_part_is_stored_without_it(opener: Opener) -> None:
    ledger = opener(SPEC)
    reported, failed = take(ledger, 10), take(ledger, 10)
    ledger.commit()
    ledger.complete(0.0, reported, "a", [(0, 4)])
    ledger.fail(0.0, failed, {12: "bad"})
    ledger.commit()
    held = {lease.lease_id: lease.ranges for lease in opener(SPEC).leases()}
    assert held == {reported: [(4, 10)], failed: [(10, 12), (13, 20)]}


def test_values_are_kept_with_the_ledger(opener: Opener) -> None:
    ledger = opener(SPEC)
    assert ledger.get_meta("round") is None
    ledger.put_meta("round", b"\x00\xff7")
    assert ledger.get_meta("round") == b"\x00\xff7"
    ledger.commit()
    ledger.put_meta("round", b"8")
    ledger = opener(SPEC)
    assert ledger.get_meta("round") == b"\x00\xff7" and ledger.get_meta("owner") is None
    with pytest.raises(LedgerError, match="itself keeps"):
        ledger.put_meta("owner", b"me")


def test_a_ledger_about_other_data_is_refused_and_other_limits_are_not(opener: Opener) -> None:
    ledger = opener(SPEC)
    take(ledger, 5)
    ledger.commit()
    with pytest.raises(LedgerError, match="is about"):
        opener(LedgerSpec(samples=SAMPLES + 1))
    with pytest.raises(LedgerError, match="is about"):
        opener(LedgerSpec(samples=SAMPLES, seed=1))
    assert opener(LedgerSpec(samples=SAMPLES, lease_s=1.0, max_attempts=9)).counts().doing == 5


def test_the_newest_owner_writes_and_an_older_one_cannot(opener: Opener) -> None:
    old = opener(SPEC)
    take(old, 5)
    old.commit()
    new = opener(SPEC)
    take(old, 5)
    with pytest.raises(LedgerError, match="another coordinator has taken over"):
        old.commit()
    with pytest.raises(LedgerError, match="refuses"):
        take(old, 1)
    take(new, 7)
    new.commit()
    assert opener(SPEC).counts().doing == 12


def test_a_rollback_takes_everything_along_and_late_reports_stay_late(opener: Opener) -> None:
    ledger = opener(SPEC)
    ledger.complete(0.0, take(ledger, 100), "a")
    checkpoint = ledger.snapshot_bytes(in_flight="todo")
    ledger.commit()
    shuffle_about(ledger, 5)
    done, open_ = take(ledger, 10), take(ledger, 10)
    ledger.complete(0.0, done, "a")
    ledger.commit()
    ledger.replace(checkpoint)
    fresh = take(ledger, 3)  # before the commit: part of the same transaction
    ledger.commit()
    for _ in range(2):
        assert (ledger.counts().done, ledger.counts().doing) == (100, 3) and fresh > open_
        assert ledger.complete(0.0, done, "a") is Outcome.LATE is ledger.complete(0.0, open_, "a")
        state = ledger.snapshot()
        assert not (state.letters or state.suspects)
        ledger = opener(SPEC)
    ledger.reset()
    ledger.commit()
    again = opener(SPEC)
    assert again.counts().todo == SAMPLES and take(again, 1) > fresh


def test_a_damaged_snapshot_changes_nothing(opener: Opener) -> None:
    ledger = opener(SPEC)
    shuffle_about(ledger, 1)
    before = ledger.snapshot_bytes()
    with pytest.raises(LedgerError, match="not a ledger's snapshot"):
        ledger.replace(before[:-1])
    with pytest.raises(LedgerError, match="is about"):
        ledger.replace(DurableLedger.open(MemoryStore(), LedgerSpec(samples=3)).snapshot_bytes())
    assert ledger.snapshot_bytes() == before


def test_a_full_memory_store_refuses_like_a_full_disk() -> None:
    store = MemoryStore()
    ledger = DurableLedger.open(store, SPEC)
    store.full = True
    take(ledger, 1)
    with pytest.raises(LedgerError, match="no space"):
        ledger.commit()
    with pytest.raises(LedgerError, match="refuses"):
        ledger.expire(0.0)


def test_a_full_disk_leaves_what_was_committed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    store = SqlStore(url)
    ledger = DurableLedger.open(store, SPEC)
    take(ledger, 5)
    ledger.commit()
    kept = ledger.snapshot_bytes()
    assert store._connection is not None
    pages = store._connection.exec_driver_sql("PRAGMA page_count").scalar_one()
    store._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    store._connection.commit()
    ledger.put_meta("much", bytes(200_000))
    take(ledger, 5)
    with pytest.raises(LedgerError, match="database or disk is full"):
        ledger.commit()
    for refused in (lambda: take(ledger, 1), ledger.commit, ledger.reset, lambda: ledger.put_meta("a", b"")):
        with pytest.raises(LedgerError, match="refuses"):
            refused()
    ledger.close()
    with DurableLedger.open(url, SPEC) as again:
        assert again.snapshot_bytes() == kept and again.get_meta("much") is None


def test_a_damaged_file_or_a_wrong_url_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database at all" * 1000)
    with pytest.raises(LedgerError, match="cannot open.*ledger.db.*not a database"):
        DurableLedger.open(f"sqlite:///{path}", SPEC)
    for url in ("nonsense", "nosuchdb://x/y", f"sqlite:///{path}/below/ledger.db"):
        with pytest.raises(LedgerError, match="cannot open"):
            DurableLedger.open(url, SPEC)


def test_rows_that_contradict_each_other_are_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with DurableLedger.open(url, SPEC) as ledger:
        take(ledger, 10)
        ledger.commit()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO returned VALUES (5, 8)"))
    engine.dispose()
    with pytest.raises(LedgerError, match="contradicts"):
        DurableLedger.open(url, SPEC)


def test_passwords_are_not_shown() -> None:
    for url in ("nosuchdb://me:secret@host/name", "postgresql+nosuchdriver://me:secret@host/name"):
        with pytest.raises(LedgerError) as caught:
            DurableLedger.open(url, SPEC)
        assert "secret" not in str(caught.value) and "me:***@host" in str(caught.value)


WRITER = """
import json, random, sys
from shoestring.data.ledger import LedgerSpec
from shoestring.data.store import DurableLedger
url, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
ledger = DurableLedger.open(url, LedgerSpec(samples=10**6, max_dead_share=1.0, max_attempts=2))
print(json.dumps("open"), flush=True)
held = []
while True:
    facts = []
    for _ in range(rng.randint(1, 20)):
        kind = rng.random()
        if kind < 0.6 or not held:
            lease = ledger.lease(0.0, "w", rng.randint(1, 50))
            held.append(lease)
            facts.append(["lease", lease.lease_id, [list(r) for r in lease.ranges]])
        else:
            lease = held.pop(rng.randrange(len(held)))
            if kind < 0.9:
                facts.append(["done", lease.lease_id, ledger.complete(0.0, lease.lease_id, "w").value])
            else:
                ledger.release(lease.lease_id)
                facts.append(["released", lease.lease_id, None])
    ledger.commit()
    print(json.dumps(facts), flush=True)
"""


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_sigkill_at_any_moment(tmp_path: Path, seed: int) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    spec = LedgerSpec(samples=10**6, max_dead_share=1.0, max_attempts=2)
    rng = random.Random(seed)
    last: dict[int, str] = {}
    ranges: dict[int, list[tuple[int, int]]] = {}
    for life in range(3):
        for kind, lease_id, what in _write_until_killed(url, seed * 10 + life, rng.randint(1, 60)):
            last[lease_id] = kind
            if kind == "lease":
                ranges[lease_id] = [(start, stop) for start, stop in what]
        with DurableLedger.open(url, spec) as ledger:
            ledger.check()
            _acknowledged_holds(ledger, last, ranges)
            for lease in ledger.leases():
                last[lease.lease_id] = "released"
                ledger.release(lease.lease_id)
            ledger.commit()


def _acknowledged_holds(
    ledger: DurableLedger, last: dict[int, str], ranges: dict[int, list[tuple[int, int]]]
) -> None:
    state = ledger.snapshot()
    in_flight = {lease.lease_id: lease.ranges for lease in state.leases}
    open_ = RangeSet([*state.returned, *(r for held in in_flight.values() for r in held)])
    unsure = 0
    for lease_id, kind in last.items():
        if kind == "lease" and lease_id in in_flight:
            assert in_flight[lease_id] == ranges[lease_id]
        elif kind == "lease":
            unsure += 1
            counted = ledger.complete(0.0, lease_id, "w") is Outcome.DUPLICATE
            last[lease_id] = "done" if counted else "released"
        else:
            wanted = Outcome.DUPLICATE if kind == "done" else Outcome.LATE
            assert lease_id not in in_flight and ledger.complete(0.0, lease_id, "w") is wanted
        if kind == "done":
            assert not any(open_.overlap(start, stop) for start, stop in ranges[lease_id])
    # Only the one commit whose answer did not get out can have ended leases unknown to us.
    assert unsure <= BATCH and state.frontier >= max(stop for held in ranges.values() for _, stop in held)


def _write_until_killed(url: str, seed: int, commits: int) -> list[tuple[str, int, Any]]:
    """Facts that a writer acknowledged before it was killed, in the middle of whatever it did then."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(seed)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    deadline_s = time.monotonic() + DEADLINE_S
    lines: list[bytes] = []
    while len(lines) <= commits:
        assert time.monotonic() < deadline_s and process.poll() is None, "the writer does not write"
        lines.append(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    lines += [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
    process.wait()
    return [tuple(fact) for line in lines[1:] for fact in json.loads(line)]
