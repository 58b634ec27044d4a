"""Training over Ray on several test hosts: a worker comes when a host does, leaves before one is drained."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.lab import Lab, LabConfig
from benchmarks.lab.network import DEVICE
from shoestring.base.record import read_events
from tests.benchmarks.lab_helpers import ROOT, needs_lab
from tests.waiting import wait_until

PORT = 6379
HEAD, FIRST, SECOND = 0, 1, 2


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.exclusive
@pytest.mark.long
@needs_lab
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_a_worker_comes_with_a_host_and_leaves_before_a_drain(tmp_path: Path, strategy: str) -> None:
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    own = Path(tempfile.mkdtemp(prefix="ray-"))  # its sockets' paths have to be short
    here = {
        "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0",
        "GLOO_SOCKET_IFNAME": DEVICE,  # the hosts have one name, and addresses of their own
        "RAY_TMPDIR": str(own),  # or later programs on this machine would look for this cluster
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }  # fmt: skip
    with Lab(LabConfig(hosts=3)) as lab, (tmp_path / "ray.log").open("wb") as log:

        def node(host: int, *words: str) -> None:
            own = f"--node-ip-address={lab.hosts[host].address}"
            lab.spawn(host, [*ray, own, *words], here, ROOT, stdout=log)

        address = f"{lab.hosts[HEAD].address}:{PORT}"
        node(HEAD, "--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false")
        node(FIRST, f"--address={address}", "--num-cpus=1")
        driver = lab.spawn(
            HEAD,
            [sys.executable, "-m", "tests.benchmarks.elastic_driver", address, str(tmp_path), strategy],
            here | {"RAY_ADDRESS": address},
            ROOT,
            stdout=log,
        )
        wanted = tmp_path / "room is wanted"
        assert wait_until(lambda: wanted.exists() or driver.poll() is not None, 90.0)
        node(SECOND, f"--address={address}", "--num-cpus=1")
        assert wait_until(lambda: driver.poll() is not None, 120.0), "the run does not end"
    shutil.rmtree(own, ignore_errors=True)
    said = (tmp_path / "ray.log").read_text(errors="replace")
    assert driver.poll() == os.EX_OK, said[-4000:]
    record = read_events(tmp_path / "events.jsonl")
    sizes = [len(event["members"]) for event in record.of("round")]
    assert sizes[:3] == [1, 2, 1], "one host, two, one"
    (drained,) = [event for event in record.of("decision") if event["action"] == "drain"]
    assert "drained" in drained["reason"] and not record.of("fault")
