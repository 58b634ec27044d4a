"""Batch inference over Ray on test hosts, its ledger in PostgreSQL: one host dies, one comes late; each row
comes out once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from benchmarks.lab import Lab, LabConfig
from shoestring.base.record import read_events
from tests.benchmarks.lab_helpers import ROOT, listens, needs_lab, processes_of
from tests.data.postgres import MISSING, Server, binaries
from tests.waiting import wait_until

PORT = 6379
HEAD, FIRST, SECOND, LATE = 0, 1, 2, 3
ROWS, SHARD_ROWS = 30_000, 50
STAGE = """
import os
import time


class Work:
    def __call__(self, batch):
        time.sleep(0.005 * len(batch))  # it waits for somebody else's service
        net = os.stat("/proc/self/ns/net").st_ino
        return {"doubled": batch["id"] * 2, "net": [net] * len(batch)}
"""


def namespace(lab: Lab, host: int) -> int:
    """The number of a host's network, which the stage tells with each row."""
    with open(lab.hosts[host].netns_path) as net:
        return os.fstat(net.fileno()).st_ino


def kill_host(lab: Lab, host: int) -> int:
    """SIGKILL to every process of the lab in a host; how many there were."""
    inode, killed = namespace(lab, host), 0
    for pid in processes_of(lab.name):
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == inode:
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def workers_in(folder: Path) -> set[int]:
    """Networks of the hosts that have rows in published output."""
    found: set[int] = set()
    for part in folder.glob("part-*"):
        found |= set(pq.read_table(part, columns=["net"])["net"].to_pylist())
    return found


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.exclusive
@pytest.mark.long
@needs_lab
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.skipif(binaries() is None, reason=MISSING)
@pytest.mark.timeout(300)
def test_each_row_comes_out_once_where_a_host_dies_and_another_comes(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    own = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets' paths have to be short
    here = {
        "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(own),  # or later programs on this machine would look for this cluster
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "8",
    }  # fmt: skip
    (tmp_path / "stage.py").write_text(STAGE)
    pq.write_table(pa.table({"id": range(ROWS)}), tmp_path / "rows.parquet")
    output = tmp_path / "out"
    database = Server()  # on a Unix socket, which all hosts of the lab reach
    request.addfinalizer(database.close)
    database.start()
    words = [
        sys.executable, "-m", "shoestring", "infer", "--source", str(tmp_path / "rows.parquet"), "--stage",
        f"{tmp_path / 'stage.py'}:Work", "--output", str(output), "--runs-dir", str(tmp_path / "runs"),
        "--name", "hosts", "--json", "--set", "fleet.transport=ray", "--set", "fleet.members.workers=2",
        "--set", "fleet.members.cpus=1", "--set", f"shards.rows={SHARD_ROWS}", "--set",
        "fleet.members.heartbeat_timeout_s=5", "--set", "fleet.members.start_timeout_s=60",
        "--set", f"ledger_url={database.url()}",
    ]  # fmt: skip
    with Lab(LabConfig(hosts=4)) as lab, (tmp_path / "ray.log").open("wb") as log:

        def node(host: int, *more: str) -> None:
            lab.spawn(
                host, [*ray, f"--node-ip-address={lab.hosts[host].address}", *more], here, ROOT, stdout=log
            )

        address = f"{lab.hosts[HEAD].address}:{PORT}"
        node(HEAD, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        head = lab.hosts[HEAD]  # a node that finds no head gives up
        assert wait_until(lambda: listens(head.netns_path, head.address, PORT), 60.0)
        node(FIRST, f"--address={address}", "--num-cpus=1")
        node(SECOND, f"--address={address}", "--num-cpus=1")
        with (tmp_path / "said").open("wb") as said:
            driver = lab.spawn(HEAD, words, here | {"RAY_ADDRESS": address}, ROOT, stdout=said)
            both = {namespace(lab, FIRST), namespace(lab, SECOND)}
            assert wait_until(lambda: workers_in(output) == both or driver.poll() is not None, 120.0)
            assert driver.poll() is None, (tmp_path / "said").read_text()[-3000:]
            assert kill_host(lab, SECOND) > 2, "a node, its agents, a worker"
            node(LATE, f"--address={address}", "--num-cpus=1")
            assert wait_until(lambda: driver.poll() is not None, 150.0), "the job does not end"
    shutil.rmtree(own, ignore_errors=True)
    text = (tmp_path / "said").read_text()
    assert driver.poll() == os.EX_OK, text[-3000:]
    assert json.loads(text[text.index("{") :])["status"] == "finished"
    assert not (tmp_path / "runs" / "hosts" / "ledger.db").exists()
    found = ds.dataset(output, format="parquet").to_table()
    assert sorted(found["id"].to_pylist()) == list(range(ROWS))
    assert found["error"].null_count == ROWS
    assert len(set(found["net"].to_pylist())) == 3, "three hosts have worked"
    faults = read_events(tmp_path / "runs" / "hosts" / "events.jsonl").of("fault")
    assert any("is gone" in event["reason"] for event in faults)
