"""Runs arms of `benchmarks.peers.run` on test hosts; an arm that fails costs itself, not the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.common import ROOT
from benchmarks.lab import Lab, LabConfig
from benchmarks.lab.config import rate_bytes_per_s
from shoestring.base.errors import ShoestringError
from shoestring.cluster.costs import JobCost
from shoestring.cluster.topology import Cluster, Device, Link, Node

PEERS = ROOT / ".cache/peers/bin/python"
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
ATTEMPTS = 3
INTRA = "4gbit"
Row = dict[str, Any]


class PartError(ShoestringError):
    """A measurement did not come about."""


@dataclass(frozen=True)
class Place:
    """Test hosts.

    Attributes:
        hosts, ranks: how many, and ranks of each.
        inter, intra: rates as the lab takes them; None: unshaped.
    """

    hosts: int = 2
    ranks: int = 2
    inter: str | None = "200mbit"
    intra: str | None = INTRA

    @property
    def name(self) -> str:
        """Such as `4 ranks in 2 hosts`."""
        return f"{self.hosts * self.ranks} ranks in {self.hosts} hosts"

    def lab(self) -> Lab:
        """Test hosts like that, to be entered."""
        return Lab(LabConfig(hosts=self.hosts, ranks=self.ranks, inter=self.inter, intra=self.intra))

    def cluster(self) -> Cluster:
        """The same as the planner sees it, rates as asked for."""
        return Cluster(
            nodes=tuple(
                Node(
                    name=f"host{number}",
                    devices=(Device(kind="cpu", cores=1, memory_bytes=2**34, workers=self.ranks,
                                    rates={"bf16": 1e11, "fp32": 1e11}),),
                )
                for number in range(self.hosts)
            ),
            inside=Link(bytes_per_s=rate_bytes_per_s(self.intra or "10gbit"), latency_s=5e-5, shared=True),
            between=Link(bytes_per_s=rate_bytes_per_s(self.inter or "10gbit"), latency_s=1e-4, shared=True),
        )  # fmt: skip


@dataclass
class Found:
    """What came of some arms.

    Attributes:
        rows: one for each time an arm ran, in order, as the worker printed them.
        failed: arm -> why it has fewer rows than rounds.
    """

    rows: list[Row] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, arm: str) -> list[Row]:
        """The rows of one arm."""
        return [row for row in self.rows if row["arm"] == arm]

    def step_s(self, arm: str) -> list[float]:
        """All timed steps of one arm, the slowest rank's, in s."""
        return [span_s for row in self.of(arm) for span_s in row["step_s"]]

    def median_s(self, arm: str) -> float:
        """Their median."""
        return statistics.median(self.step_s(arm))


def run_arms(
    place: Place, arms: Sequence[str], flags: Mapping[str, Any], timeout_s: float, rounds: int = 1
) -> Found:
    """Let arms take turns on one set of test hosts.

    Args:
        flags: of `benchmarks.peers.run`, by name without dashes in front.
        timeout_s: for all of them together; after a failure the rest is started again, with the time left.
        rounds: how often the arms are gone through.
    """
    found, left, todo = Found(), list(arms), rounds
    python = str(PEERS if any(arm.startswith(("zero3", "hpz")) for arm in arms) else sys.executable)
    for _ in range(ATTEMPTS):
        turn = left * todo
        words = [python, "-m", "benchmarks.peers.run", "--arm", *left, "--rounds", str(todo)]
        words += ["--ranks-per-host", str(place.ranks)]
        for name, value in flags.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        rows: list[Row] = []
        with place.lab() as lab:
            result = lab.run(words, timeout_s, QUIET, ROOT, partial(_take, rows))
        found.rows += rows
        if not result.why:
            return found
        if len(rows) >= len(turn):
            return found  # it failed to end, after all was measured
        culprit = turn[len(rows)]
        said = "\n".join(result.outputs)[-600:]
        found.failed[culprit] = f"{result.why}: {said}"
        print(f"  {culprit} failed: {result.why}", flush=True)
        left = [arm for arm in left if arm != culprit]
        todo -= len(rows) // len(turn) if not left else len(rows) // (len(turn) // todo)
        timeout_s -= result.duration_s
        if not left or todo < 1 or timeout_s < 10:
            break
    for arm in left:
        if not found.of(arm):
            found.failed[arm] = "not run: others failed before it, or time was up"
    return found


def _take(rows: list[Row], rank: int, line: str) -> None:
    if rank == 0 and line.startswith('{"arm"'):
        row: Row = json.loads(line)
        rows.append(row)
        print(f"  {row['arm']:20} {row['step_s_median']:.3f} s", flush=True)


def job_of(row: Row) -> JobCost:
    """The planner's job for a row of one of our arms: its units, bf16 with fp32 masters, Adam."""
    units, setup = row["units"], row["setup"]
    total = sum(unit["padded"] for unit in units)
    byte_count = 2 if setup["dtype"] == "bf16" else 4
    return JobCost(
        parameters=total, flops_per_sample=6.0 * total * setup["length"], activation_bytes_per_sample=0.0,
        micro_batch=setup["micro_batch"], batch=setup["micro_batch"] * setup["accumulation"] * row["ranks"],
        gradient_bytes=byte_count, parameter_bytes=byte_count, base_bytes=0, layers=len(units) - 1,
        root_parameters=units[0]["padded"], accumulation=setup["accumulation"], compute_dtype=setup["dtype"],
    )  # fmt: skip


def state_bytes(row: Row) -> int:
    """Parameters, gradients, masters and moments that the fullest rank holds."""
    return int(row["parameters_bytes"] + row["gradients_bytes"] + row["states_bytes"])


def sent_bytes(row: Row) -> float:
    """Bytes that the busiest host sends in a step, by its network card: the mean over the timed steps."""
    return float(row["mean_sent_bytes"])


def child(module: str, words: Sequence[str], timeout_s: float, env: Mapping[str, str] | None = None) -> Any:
    """The last line of JSON of `python -m MODULE`, in a session of its own that ends with this call.

    Raises:
        PartError: it failed, or took too long.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *words], cwd=ROOT,
        env={**os.environ, **QUIET, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as late:
        raise PartError(f"{module} took longer than {timeout_s:g} s", "run it alone") from late
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # forked ranks, where some are left
        process.wait()
    lines = [line for line in said.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise PartError(f"{module} ended with {process.returncode}: {said[-1500:]}", "run it alone")
    return json.loads(lines[-1])
