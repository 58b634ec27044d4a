"""A job whose ledger is in PostgreSQL: a real server, which dies while it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands.infer_jobs import here, infer, output, words, write_csv, write_stage
from tests.commands.journeys import start_shoestring
from tests.data.postgres import MISSING, Server, binaries
from tests.waiting import wait_until

ROWS = 300


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if binaries() is None:
        pytest.skip(MISSING)
    made = Server()
    made.start()
    yield made
    made.close()


def slow_words(folder: Path, url: str) -> list[str]:
    """A job of three seconds and more."""
    write_stage(folder)
    write_csv(folder / "data" / "a.csv", range(ROWS))
    slow = f'[{{uses="{folder / "stages.py"}:Scale", options={{slow_s=0.01}}, batch=5, processes=1}}]'
    return words(folder, "--set", "shards.rows=20", "--set", f"stages={slow}", "--set", f"ledger_url={url}")


@pytest.mark.faults
def test_the_server_dies_and_comes_back_and_each_row_is_there_once(tmp_path: Path, server: Server) -> None:
    process = start_shoestring(*slow_words(tmp_path, server.url()))
    assert wait_until(lambda: list((tmp_path / "out").glob("part-*")) or process.poll() is not None, 60.0)
    server.restart()
    said, wrong = process.communicate(timeout=100)
    assert process.returncode == 0, wrong + said
    assert json.loads(said)["status"] == "finished"
    found = output(tmp_path)
    assert sorted(found["x"].to_pylist()) == list(range(ROWS))
    assert found["scaled"].to_pylist() == [2 * x for x in found["x"].to_pylist()]
    again = here(*slow_words(tmp_path, server.url()))
    assert again.exit_code == 0 and output(tmp_path).num_rows == ROWS, "it is done already"
    assert not list((tmp_path / "runs").glob("*/ledger.db")), "the ledger is in the server alone"


def test_a_server_that_is_not_there_is_told_without_its_password(tmp_path: Path) -> None:
    write_stage(tmp_path)
    write_csv(tmp_path / "data" / "a.csv", range(10))
    url = "postgresql+psycopg://me:secret@127.0.0.1:9/none?connect_timeout=1"
    code, answer = infer(tmp_path, "--set", f"ledger_url={url}")
    assert code != 0 and "secret" not in json.dumps(answer)
    assert "127.0.0.1" in json.dumps(answer)
    kept = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert not [path for path in kept if b"secret" in path.read_bytes()]
