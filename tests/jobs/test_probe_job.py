"""The probe as a job on the fleet: local, with a worker killed, interrupted, over Ray, in test hosts."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.lab import Lab, LabConfig, LabError
from shoestring.base.clock import SystemClock
from shoestring.base.errors import ConfigError, ShoestringError
from shoestring.cluster.topology import load_cluster
from shoestring.commands.probe import heat_map
from shoestring.commands.probe import probe as probe_command
from shoestring.jobs.probe import Findings, ProbeOptions, probe, to_cluster
from shoestring.jobs.probe.job import make_launch

ROOT = Path(__file__).parents[2]
CLOCK = SystemClock()
SHOESTRING = [sys.executable, "-m", "shoestring", "probe"]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"} | more


def children_of(pid: int) -> list[int]:
    return sorted(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: a socket goes into it, and pytest's parallel folders are too long."""
    with tempfile.TemporaryDirectory(prefix="p-") as folder:
        yield Path(folder)


def test_local_workers_become_a_cluster_file_and_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, page = tmp_path / "cluster.toml", tmp_path / "cluster.html"
    assert probe_command(2, "local", 1.0, output, page, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    cluster = load_cluster(output)
    assert told["cluster"] == json.loads(cluster.model_dump_json())
    (node,) = cluster.nodes
    assert node.devices[0].workers == 2 and set(node.devices[0].rates) == {"fp32", "bf16"}
    assert cluster.inside.bytes_per_s > 1e6 and 0 < cluster.inside.latency_s < 1
    assert cluster.workers == (f"{node.name}/0", f"{node.name}/1")
    assert "all pairs: round 1 of 1" in page.read_text(encoding="utf-8")
    assert heat_map(msgspec.convert(told["findings"], Findings)).links.keys() == {(0, 1)}


@pytest.mark.faults
def test_a_killed_worker_is_started_again_and_the_survey_too(tmp_path: Path) -> None:
    said: list[str] = []

    def say(text: str) -> None:
        if "compute" in text and not any("compute" in earlier for earlier in said):
            os.kill(children_of(os.getpid())[-1], signal.SIGKILL)
        said.append(text)

    found = probe(ProbeOptions(3, "local", 4.0, tmp_path), CLOCK, say)
    assert len(found.workers) == 3 and len(found.pairs) == 3
    assert any("is gone" in text for text in said), said


@pytest.mark.faults
def test_ctrl_c_ends_all_at_once_and_writes_nothing(short_path: Path) -> None:
    tmp_path = short_path
    arguments = [*SHOESTRING, "--workers", "2", "--seconds", "60", "--output", str(tmp_path / "c.toml")]
    running = subprocess.Popen(
        [*arguments, "--page", str(tmp_path / "c.html")],
        stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment(TMPDIR=str(tmp_path)),
    )  # fmt: skip
    assert running.stderr is not None
    assert "compute" in running.stderr.readline()
    workers = children_of(running.pid)
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=20)
    assert running.returncode == 130, told
    assert "the probe was interrupted" in told and "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
    assert workers and not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_what_cannot_be_probed_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="say --workers N"):
        make_launch(ProbeOptions(0, "ray", 1.0, tmp_path), tmp_path)
    with pytest.raises(ShoestringError, match="does not exist"):
        probe_command(2, "local", 1.0, tmp_path / "no" / "c.toml", tmp_path / "c.html", as_json=True)
    with pytest.raises(ShoestringError, match="is a directory"):
        probe_command(2, "local", 1.0, tmp_path, tmp_path / "c.html", as_json=True)


@pytest.mark.ray
@pytest.mark.timeout(200)
def test_over_ray_inside_a_namespace(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed")
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("ip")):
        pytest.skip("a network namespace takes root, unshare and iproute2")
    probing = [*SHOESTRING, "--workers", "2", "--transport", "ray", "--seconds", "2", "--json"]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *probing],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    cluster = load_cluster(tmp_path / "cluster.toml")
    assert len(cluster.workers) == 2 and cluster.nodes[0].address
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.html", "cluster.toml"]


def survey_in_test_hosts() -> Findings:
    """By two hosts with two ranks each, joined at 200 Mbit/s."""
    try:
        with Lab(LabConfig(hosts=2, ranks=2, inter="200mbit")) as lab:
            result = lab.run(
                [sys.executable, "-m", "tests.jobs.probe_ranks", "8"],
                timeout_s=120,
                env={"PYTHONPATH": str(ROOT)},
            )
    except LabError as error:
        pytest.skip(str(error))
    assert not any(result.codes), result.outputs
    line = next(line for line in result.outputs[0].splitlines() if line.startswith("{"))
    return msgspec.json.decode(line, type=Findings)


@pytest.mark.faults
@pytest.mark.exclusive
@pytest.mark.timeout(300)
def test_two_hosts_behind_200_mbit_are_two_groups_of_two() -> None:
    found = survey_in_test_hosts()
    if len(found.groups) != 2 or not found.card_shared:
        found = survey_in_test_hosts()  # a machine busy with other work looks like slow links, once
    cluster = to_cluster(found)
    groups = [group.workers for group in cluster.groups]
    assert groups == [("host0/0", "host0/1"), ("host1/0", "host1/1")], found.groups_reason
    assert 12e6 < cluster.between.bytes_per_s < 28e6
    assert cluster.inside.bytes_per_s > 3 * cluster.between.bytes_per_s
    assert cluster.between.shared, found.card_reason
