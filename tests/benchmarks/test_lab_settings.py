"""What a lab can be told, and where its CPU groups go: no root needed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from benchmarks.lab import LabConfig, LabError, require
from benchmarks.lab.config import rate_bytes_per_s
from benchmarks.lab.network import BURST_MIN_BYTES, bucket
from benchmarks.lab.quotas import Hierarchy, Quotas, find_hierarchy, quota_us
from benchmarks.lab.reaper import sweep
from shoestring.base.errors import ConfigError, ShoestringError


@pytest.mark.parametrize(
    ("text", "bytes_per_s"), [("200mbit", 25e6), ("1.5gbit", 187.5e6), (" 64KBIT ", 8e3), ("8000bit", 1e3)]
)
def test_rates_are_read_as_tc_reads_them(text: str, bytes_per_s: float) -> None:
    assert rate_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize("text", ["", "200", "200mb", "mbit", "-1mbit", "1e3mbit", "7kbit", "0gbit"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="200mbit"):
        LabConfig(inter=text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": 0},
        {"hosts": 201},
        {"ranks": 0},
        {"delay_ms": -1.0},
        {"delay_ms": float("nan")},
        {"hosts": 4, "cpu": (1.0, 1.0)},
        {"cpu": (0.0,)},
        {"cpu": (float("inf"),)},
        {"intra": "fast"},
    ],
)
def test_impossible_labs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        LabConfig(**wrong)  # type: ignore[arg-type]
    assert caught.value.todo


def test_one_quota_is_for_all_hosts_and_none_for_nobody() -> None:
    assert [LabConfig(hosts=2, cpu=(0.5,)).cores(host) for host in (0, 1)] == [0.5, 0.5]
    assert [LabConfig(hosts=2, cpu=(0.5, 1.0)).cores(host) for host in (0, 1)] == [0.5, 1.0]
    assert LabConfig(hosts=2).cores(1) is None


def test_a_bucket_holds_half_a_millisecond_and_two_frames_at_least() -> None:
    assert "rate 8000000000bit burst 500000 " in bucket("8gbit", BURST_MIN_BYTES)
    assert f"rate 1000000bit burst {BURST_MIN_BYTES} " in bucket("1mbit", BURST_MIN_BYTES)


def test_quotas_below_a_millisecond_get_a_longer_period() -> None:
    assert quota_us(0.5) == (5_000, 10_000)
    assert quota_us(0.01) == (1_000, 100_000)


def test_without_root_the_error_says_so() -> None:
    """In a child that gives up root; where the tests have none, that is the case already."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            require("ip")
        except ShoestringError as error:
            os.write(writing, f"{type(error).__name__} {error}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert said.startswith("LabError") and "takes root" in said and "sudo" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="without root that is the first error")
def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError) as caught:
        require("ip", "tc", "nft")
    assert caught.value.todo == "apt-get install iproute2 nftables"


def test_the_cpu_hierarchy_of_version_1_is_below_our_own_group(tmp_path: Path) -> None:
    mounts = f"cgroup {tmp_path} cgroup rw,relatime,cpu,cpuacct 0 0\ncgroup2 /none cgroup2 rw 0 0\n"
    own = "4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n"
    assert find_hierarchy(mounts, own) == Hierarchy(tmp_path, 1)  # a container that cannot see /box
    (tmp_path / "box").mkdir()
    assert find_hierarchy(mounts, own) == Hierarchy(tmp_path / "box", 1)


def test_version_2_counts_only_with_its_cpu_controller(tmp_path: Path) -> None:
    mounts = f"cgroup2 {tmp_path} cgroup2 rw,nosuid 0 0\n"
    assert find_hierarchy(mounts, "0::/\n") is None
    (tmp_path / "cgroup.controllers").write_text("memory pids\n")
    assert find_hierarchy(mounts, "0::/\n") is None
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory\n")
    assert find_hierarchy(mounts, "0::/\n") == Hierarchy(tmp_path, 2)


@pytest.mark.parametrize(
    ("version", "file", "half", "unlimited"),
    [(1, "cpu.cfs_quota_us", "5000", "-1"), (2, "cpu.max", "5000 10000", "max 10000")],
)
def test_quotas_are_written_as_each_version_wants_them(
    tmp_path: Path, version: int, file: str, half: str, unlimited: str
) -> None:
    quotas = Quotas(Hierarchy(tmp_path, version), f"shoelab-{os.getpid()}-x", hosts=2)
    try:
        quotas.set(1, 0.5)
        assert (quotas.path / "host1" / file).read_text() == half
        quotas.set(1, None)
        assert (quotas.path / "host1" / file).read_text() == unlimited
        assert not (quotas.path / "host0" / file).exists()
        with pytest.raises(ConfigError):
            quotas.set(0, 0.0)
    finally:
        quotas.close()
    enabled = [path.read_text() for path in tmp_path.rglob("cgroup.subtree_control")]
    assert enabled == (["+cpu", "+cpu"] if version == 2 else [])


def test_groups_that_cannot_be_made_are_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "lab").touch()
    with pytest.raises(LabError, match="CPU groups"):
        Quotas(Hierarchy(tmp_path, 1), "lab", hosts=1)


def test_a_start_sweeps_groups_of_dead_labs_only(tmp_path: Path) -> None:
    dead = 4_194_304  # above the largest process id that Linux gives
    for name in (f"shoelab-{dead}-a/host0", f"shoelab-{dead}-b", f"shoelab-{os.getpid()}-c", "other"):
        (tmp_path / name).mkdir(parents=True)
    held = os.open(tmp_path / f"shoelab-{dead}-b", os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a lab does whose process is in another container
        assert sweep(str(tmp_path)) == [f"shoelab-{dead}-a"]
    finally:
        os.close(held)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"shoelab-{dead}-b", f"shoelab-{os.getpid()}-c", "other"}
