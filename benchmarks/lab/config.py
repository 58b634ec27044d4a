"""What a lab looks like, and what it needs to be built (source: ours)."""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import dataclass

from shoestring.base.errors import ConfigError, ShoestringError

MAX_HOSTS = 200
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_RATE = re.compile(r"(\d+(?:\.\d+)?)(bit|kbit|mbit|gbit)")


class LabError(ShoestringError):
    """Test hosts cannot be built or used here, or a command failed on them."""

    exit_code = 9


@dataclass(frozen=True)
class LabConfig:
    """Test hosts and the network between them.

    Attributes:
        hosts: how many, 1 to 200.
        ranks: processes of a command on each.
        inter: rate of each host's link, all its traffic together, each way (`200mbit`); None: as it comes.
        intra: rate of each host's own loopback, all pairs and both ways together; None: as it comes.
        delay_ms: what the network adds to each packet from one host to another, one way.
        cpu: cores that a host may use, all its ranks together: one number, or one each; empty: all.

    Raises:
        ConfigError: a number makes no sense, or a rate cannot be read.
    """

    hosts: int = 2
    ranks: int = 1
    inter: str | None = None
    intra: str | None = None
    delay_ms: float = 0.0
    cpu: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.hosts <= MAX_HOSTS or self.ranks < 1:
            raise ConfigError(
                f"{self.hosts} hosts of {self.ranks} ranks cannot be built",
                f"take 1 to {MAX_HOSTS} hosts and at least one rank",
            )
        if not (math.isfinite(self.delay_ms) and self.delay_ms >= 0):
            raise ConfigError(f"a delay of {self.delay_ms} ms cannot be had", "take 0 ms or more")
        if len(self.cpu) not in (0, 1, self.hosts):
            raise ConfigError(
                f"{len(self.cpu)} CPU quotas for {self.hosts} hosts",
                "give one for all hosts, or one for each",
            )
        for cores in self.cpu:
            check_cores(cores)
        for rate in (self.inter, self.intra):
            if rate is not None:
                rate_bytes_per_s(rate)

    @property
    def world(self) -> int:
        """Ranks on all hosts together."""
        return self.hosts * self.ranks

    def cores(self, host: int) -> float | None:
        """Cores that a host may use; None: as many as there are."""
        if not self.cpu:
            return None
        return self.cpu[host] if len(self.cpu) > 1 else self.cpu[0]


def rate_bytes_per_s(rate: str) -> float:
    """Bytes a second of `200mbit`, `1.5gbit`, `64kbit` (1000s, as tc reads them).

    Raises:
        ConfigError: it is no such rate, or below 8 kbit/s.
    """
    match = _RATE.fullmatch(rate.strip().lower())
    bytes_per_s = float(match[1]) * _BITS[match[2]] / 8 if match else 0.0
    if bytes_per_s < 1000:
        raise ConfigError(f"{rate!r} is no rate of a network", "write it like 200mbit, 4gbit or 64kbit")
    return bytes_per_s


def check_cores(cores: float) -> None:
    """Raises ConfigError where `cores` is no share of a machine that the kernel can keep (0.01 and more)."""
    if not (math.isfinite(cores) and cores >= 0.01):
        raise ConfigError(f"a quota of {cores} cores cannot be kept", "take 0.01 cores or more")


def require(*programs: str) -> None:
    """Make sure that a lab can be built here.

    Raises:
        LabError: we are not root, or a program is missing; says which package has it.
    """
    if os.geteuid() != 0:
        raise LabError(
            "test hosts are network namespaces, and making one takes root",
            "run the same command as root (sudo), or in a container that was started with --privileged",
        )
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = sorted({PACKAGES[program] for program in missing})
        raise LabError(
            f"test hosts need {', '.join(missing)}, which is not on the PATH",
            f"apt-get install {' '.join(packages)}",
        )
