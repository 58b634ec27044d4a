"""A job whose ledger is in PostgreSQL: a real server, which dies while it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import StoreAwayError
from shoestring.base.record import Events, read_events
from shoestring.data.stores import SqlStore
from tests.commands.infer_jobs import here, infer, output, words, write_csv, write_stage
from tests.commands.journeys import start_shoestring
from tests.data.postgres import Server
from tests.waiting import wait_until

ROWS = 300
NOWHERE = "postgresql+psycopg://me:secret@127.0.0.1:9/none"


def away(log: Events) -> list[str]:
    """Outages of the server that stand in a record."""
    return [event["reason"] for event in log.of("fault") if "is away, nothing is counted" in event["reason"]]


def test_an_outage_is_told_once_however_long_it_takes() -> None:
    told: list[str] = []
    clock = FakeClock()
    store = SqlStore(f"{NOWHERE}?connect_timeout=1", patience_s=30.0, clock=clock, told=told.append)
    with pytest.raises(StoreAwayError):
        store.check()
    assert clock.now() >= 30.0 and len(told) == 1
    assert "trying again for up to 30 s" in told[0] and "secret" not in told[0]
    with pytest.raises(StoreAwayError):
        store.claim()
    assert len(told) == 2, "that is another time"


def slow_words(folder: Path, url: str) -> list[str]:
    """A job of three seconds and more."""
    write_stage(folder)
    write_csv(folder / "data" / "a.csv", range(ROWS))
    slow = f'[{{uses="{folder / "stages.py"}:Scale", options={{slow_s=0.01}}, batch=5, processes=1}}]'
    return words(folder, "--set", "shards.rows=20", "--set", f"stages={slow}", "--set", f"ledger_url={url}")


@pytest.mark.faults
def test_the_server_dies_and_comes_back_and_each_row_is_there_once(tmp_path: Path, postgres: Server) -> None:
    command = slow_words(tmp_path, postgres.url())
    process = start_shoestring(*command)
    assert wait_until(lambda: list((tmp_path / "out").glob("part-*")) or process.poll() is not None, 60.0)
    postgres.restart()
    said, wrong = process.communicate(timeout=100)
    assert process.returncode == 0, wrong + said
    assert json.loads(said)["status"] == "finished"
    found = output(tmp_path)
    assert sorted(found["x"].to_pylist()) == list(range(ROWS))
    assert found["scaled"].to_pylist() == [2 * x for x in found["x"].to_pylist()]
    again = here(*command)
    assert again.exit_code == 0 and output(tmp_path).num_rows == ROWS, "it is done already"
    assert not list((tmp_path / "runs").glob("*/ledger.db")), "the ledger is in the server alone"
    (log,) = (tmp_path / "runs").glob("*/events.jsonl")
    assert away(read_events(log)), "the outage stands in the record"


def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(10))
    url = f"{NOWHERE}?connect_timeout=1&shoestring_patience_s=0.1"
    code, answer = infer(tmp_path, "--name", "job", "--set", f"ledger_url={url}")
    assert code != 0 and "secret" not in json.dumps(answer)
    assert "127.0.0.1" in json.dumps(answer)
    log = read_events(tmp_path / "runs" / "job" / "events.jsonl")
    assert not log.of("trial"), "no model was loaded before"
    assert len(away(log)) == 1
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    (kept,) = [path for path in files if b"secret" in path.read_bytes()]
    assert kept.name == "config.toml" and kept.stat().st_mode & 0o777 == 0o600, "a resume needs it"
