"""Test hosts on one machine, and commands on them (source: ours)."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from benchmarks.lab.config import LabConfig, LabError, require
from benchmarks.lab.network import DEVICE, Counters, Network, address
from benchmarks.lab.quotas import Quotas, find_hierarchy
from benchmarks.lab.reaper import PREFIX, reap
from benchmarks.lab.running import GRACE_S, OnLine, Process, end, follow, script, start
from shoestring.base.clock import Clock, SystemClock

FIRST_PORT = 20_001
"""Below what the kernel hands out by itself."""
REAPED_S = 15.0
MARK = "SHOESTRING_LAB"
"""In the environment of every process of a lab: its name."""


@dataclass(frozen=True)
class Host:
    """A test host.

    Attributes:
        address: IPv4, as other hosts reach it.
        netns_path: for `enter`, setns or `nsenter --net=`; works while the lab does.
    """

    index: int
    address: str
    netns_path: str


@dataclass(frozen=True)
class RunResult:
    """What came of a command.

    Attributes:
        codes: exit code by rank; -N: ended by signal N.
        outputs: what each rank wrote, stdout and stderr together.
        counters: by host, of this command's time only.
        duration_s: from the first start to the last end.
        code: of the first rank that failed; 124 after a time-out; 0.
        why: what ended it early; empty when every rank ended with 0.
    """

    codes: tuple[int, ...]
    outputs: tuple[str, ...]
    counters: dict[int, Counters]
    duration_s: float
    code: int
    why: str

    def check(self) -> RunResult:
        """Itself.

        Raises:
            LabError: some rank failed, or time was up; with the end of what the first of them wrote.
        """
        if self.why:
            rank = next((rank for rank, code in enumerate(self.codes) if code == self.code), 0)
            raise LabError(
                f"the command on the test hosts failed: {self.why}",
                f"read its output:\n{self.outputs[rank][-2000:]}",
            )
        return self


class Lab:
    """Builds hosts for a `with` block; when it ends, however it does, nothing of them is left.

    Methods are for one thread, and processes die with the thread that started them.

    Raises (on entering):
        LabError: no root, a program or a feature of the kernel is missing.

    Example:
        with Lab(LabConfig(hosts=4, inter="200mbit", delay_ms=2.0)) as lab:
            result = lab.run([sys.executable, "worker.py"], timeout_s=120).check()
    """

    def __init__(self, config: LabConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(3)}"
        self.hosts: tuple[Host, ...] = ()
        self._clock = clock or SystemClock()
        self._network: Network | None = None
        self._quotas: Quotas | None = None
        self._reaper: Process | None = None
        self._relay: Process | None = None
        self._spawned: list[Process] = []
        self._next_port = FIRST_PORT

    def __enter__(self) -> Lab:
        require("ip", "tc")
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: OnLine | None = None,
        grace_s: float = GRACE_S,
    ) -> RunResult:
        """Run a command once per rank on each host and wait; when one fails, the others are ended.

        Ranks find RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, NNODES, MASTER_ADDR, a fresh
        MASTER_PORT, the interface for gloo, NCCL and TensorPipe, and OMP_NUM_THREADS=1 in their environment.

        Args:
            timeout_s: after which all are ended.
            env: added to our own environment and to those above, which it may replace.
            on_line: gets (rank, line) as ranks write.
            grace_s: between SIGTERM and SIGKILL for ranks that are ended.

        Raises:
            LabError: the command cannot be started, or the network broke down.
        """
        port = self._net.free_port(self._next_port)
        self._next_port = port + 1
        before = self.counters()
        start_s = self._clock.now()
        ranks: list[Process] = []
        try:
            for rank in range(self.config.world):
                words = self._rank_environment(rank, port) | dict(env or {})
                ranks.append(self._start(rank // self.config.ranks, argv, words, cwd, subprocess.PIPE))
            followed = follow(ranks, self._relay, timeout_s, on_line, self._clock, grace_s)
        finally:
            end(ranks, self._clock)
        after = self.counters()
        return RunResult(
            codes=tuple(process.returncode for process in ranks),
            outputs=tuple(output.decode(errors="replace") for output in followed.outputs),
            counters={host: after[host] - before[host] for host in after},
            duration_s=self._clock.now() - start_s,
            code=followed.first,
            why=followed.why,
        )

    def spawn(
        self,
        host: int,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: int | IO[bytes] | None = None,
    ) -> Process:
        """Start one process on a host and leave it to the caller; it ends with the lab at the latest.

        Args:
            stdout: as for Popen, for stderr too; None: ours.

        Raises:
            LabError: it cannot be started.
        """
        process = self._start(host, argv, env or {}, cwd, stdout)
        self._spawned = [*(one for one in self._spawned if one.poll() is None), process]
        return process

    def counters(self) -> dict[int, Counters]:
        """Bytes by host since the lab was built."""
        return {host.index: self._net.counters(host.index) for host in self.hosts}

    def set_rate(self, rate: str | None, host: int | None = None) -> None:
        """Shape the link of one host, or of each, anew; None: unshaped.

        Raises:
            ConfigError: no such rate.
        """
        self._net.set_rate(rate, range(len(self.hosts)) if host is None else [host])

    def set_cpu(self, host: int, cores: float | None) -> None:
        """Let a host use so many cores, all its processes together; None: all there are.

        Raises:
            ConfigError: no such share.
            LabError: there is no cpu controller here.
        """
        if self._quotas is None:
            raise LabError(
                "no cgroup with a cpu controller is mounted, so no host can have a CPU quota",
                "mount one (version 1 or 2), or leave out the quota",
            )
        self._quotas.set(host, cores)

    def adopt(self, host: int, pid: int) -> None:
        """Let a process that was started elsewhere, with all its threads, share the cores of a host.

        Raises:
            LabError: there is no cpu controller here, or no such process.
        """
        if self._quotas is None:
            raise LabError("no cgroup with a cpu controller is mounted", "mount one (version 1 or 2)")
        try:
            self._quotas.processes(host).write_text(str(pid))
        except OSError as error:
            raise LabError(
                f"process {pid} cannot be moved to host {host}: {error.strerror}", "it may have ended"
            ) from error

    def partition(self, *groups: Sequence[int]) -> None:
        """Cut the network between groups of hosts, silently; hosts in no group reach everybody.

        Raises:
            LabError: nft is missing.
        """
        self._net.partition(groups)

    def heal(self) -> None:
        """Undo `partition`."""
        self._net.partition(())

    def close(self) -> None:
        """End every process of the lab and remove what it made; `with` calls it.

        Raises:
            LabError: something resisted; says what.
        """
        end([one for one in self._spawned if one.poll() is None], self._clock)
        left = self._reap()
        for process in (*self._spawned, self._relay):
            if process is not None:
                process.wait()
        self._spawned, self._relay = [], None
        if self._quotas is not None:
            self._quotas.close()
        if self._network is not None:
            self._network.close()
        self._quotas, self._network, self.hosts = None, None, ()
        if left:
            raise LabError(f"of the lab {self.name} there is left: {left}", "end it by hand; look at dmesg")

    @property
    def _net(self) -> Network:
        if self._network is None:
            raise LabError(f"the lab {self.name} is not up", "use it inside its `with` block")
        return self._network

    def _build(self) -> None:
        hierarchy = find_hierarchy(
            Path("/proc/self/mounts").read_text(), Path("/proc/self/cgroup").read_text()
        )
        if hierarchy is not None:
            self._quotas = Quotas(hierarchy, self.name, self.config.hosts)
        self._network = Network(self.config)
        # Before anything runs in the namespaces, so that there is always somebody to end it.
        self._start_reaper()
        self.hosts = tuple(
            Host(index, address(index), f"/proc/{os.getpid()}/fd/{namespace}")
            for index, namespace in enumerate(self._network.hosts)
        )
        for host in self.hosts:
            if self.config.cores(host.index) is not None:
                self.set_cpu(host.index, self.config.cores(host.index))
        if self.config.delay_ms > 0:
            self._start_relay()

    def _start_reaper(self) -> None:
        namespaces = self._net.namespaces
        cgroup = str(self._quotas.path) if self._quotas is not None else ""
        self._reaper = subprocess.Popen(
            [*script("reaper"), str(os.getpid()), cgroup, *map(str, namespaces)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=namespaces,
            start_new_session=True,
            env=self._environment({}),
        )

    def _start_relay(self) -> None:
        ports = self._net.ports()
        with contextlib.ExitStack() as stack:
            for port, _ in ports:
                stack.enter_context(port)
            words = [f"{port.fileno()}/{hardware}" for port, hardware in ports]
            self._relay = start(
                self._net.switch,
                None,
                [*script("relay"), str(self.config.delay_ms / 1000), *words],
                self._environment({}),
                keep_fds=[port.fileno() for port, _ in ports],
            )

    def _reap(self) -> str:
        """What is left; a reaper that somebody killed is stood in for."""
        reaper, self._reaper = self._reaper, None
        if reaper is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                said, _ = reaper.communicate(timeout=REAPED_S)
                if reaper.returncode in (0, 1):
                    return said.decode()
            reaper.kill()
            reaper.wait()
        inodes = {os.fstat(one).st_ino for one in self._network.namespaces} if self._network else set()
        return "\n".join(reap(inodes, str(self._quotas.path) if self._quotas else "", {os.getpid()}))

    def _rank_environment(self, rank: int, port: int) -> dict[str, str]:
        host, local = divmod(rank, self.config.ranks)
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(self.config.world),
            "LOCAL_RANK": str(local),
            "LOCAL_WORLD_SIZE": str(self.config.ranks),
            "GROUP_RANK": str(host),
            "NNODES": str(self.config.hosts),
            "MASTER_ADDR": address(0),
            "MASTER_PORT": str(port),
            "GLOO_SOCKET_IFNAME": DEVICE,
            "NCCL_SOCKET_IFNAME": DEVICE,
            "TP_SOCKET_IFNAME": DEVICE,
            "OMP_NUM_THREADS": "1",
        }

    def _start(
        self,
        host: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | None,
        stdout: int | IO[bytes] | None,
    ) -> Process:
        processes = self._quotas.processes(host) if self._quotas is not None else None
        return start(self._net.hosts[host], processes, argv, self._environment(env), cwd, stdout)

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        return {**os.environ, **more, MARK: self.name}
