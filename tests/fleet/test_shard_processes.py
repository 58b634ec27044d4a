"""Jobs over rows on the transports of one machine, with real files and real kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shoestring.fleet.launch import Outcome
from tests.fleet.conformance import Transport
from tests.fleet.shard_conformance import ShardConformance, ShardProcessConformance, all_of, job, written
from tests.fleet.test_transports import InProcessTransport, LocalTransport
from tests.waiting import wait_until


class TestInProcess(ShardConformance):
    @pytest.fixture
    def transport(self) -> Transport:
        return InProcessTransport()


@pytest.mark.faults
class TestLocal(ShardProcessConformance):
    @pytest.fixture
    def transport(self) -> Transport:
        return LocalTransport()


PROGRAM = (
    "import sys; from pathlib import Path\n"
    "from tests.fleet.shard_conformance import job; from tests.fleet.test_transports import LocalTransport\n"
    "LocalTransport().run(job(Path(sys.argv[1]), 2, toy={'row_s': 0.01}))\n"
)


@pytest.mark.faults
def test_everything_killed_at_once_and_started_again(tmp_path: Path) -> None:
    for files in (3, 8):
        supervisor = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
        assert wait_until(lambda most=files: len(list((tmp_path / "out").glob("*.parquet"))) >= most, 60.0)
        supervisor.kill()
        supervisor.wait()
        assert 0 < len(written(tmp_path)) < 300
    assert LocalTransport().run(job(tmp_path, 2)) == Outcome("finished")
    assert written(tmp_path) == all_of()
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".staging")]
