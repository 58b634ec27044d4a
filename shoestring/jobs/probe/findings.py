"""What a probe found, and the Cluster that follows from it (source: ours)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from shoestring.base.errors import FleetError
from shoestring.cluster.clustering import Pair
from shoestring.cluster.topology import Cluster, Device, Group, Link, Node
from shoestring.jobs.probe.meter import LinkRate

FILE = "findings.json"


class Facts(msgspec.Struct, frozen=True):
    """What a rank knows without measuring.

    Attributes:
        node: name of its host; ranks that say the same are on one host.
        address: of that host, as the others reach it; empty: only from itself.
        kind: `cpu` or `cuda`; `device`: what the maker calls it.
        cores, threads: of a CPU, and how many of them this rank computes with.
        memory_bytes: what can be used of the device's memory (of the host's for a CPU).
    """

    node: str
    address: str
    kind: str
    device: str
    cores: int
    threads: int
    memory_bytes: int


class Worker(msgspec.Struct, frozen=True):
    """A rank at its *seat*, with FLOP/s by dtype: alone on its host, and all at once."""

    name: str
    rank: int
    facts: Facts
    alone: dict[str, float]
    together: dict[str, float]


class PairFound(msgspec.Struct, frozen=True):
    """A pair of seats, measured while the other pairs of its round were, too."""

    one: int
    other: int
    link: LinkRate
    round: int


class Suspect(msgspec.Struct, frozen=True):
    """Whom a paired check was about, of `links` or `compute`, and what came out (suspect, other) and why."""

    worker: str
    what: str
    blame: str
    reason: str


class Findings(msgspec.Struct, frozen=True):
    """All that a probe found; seats are numbered host by host.

    Attributes:
        rounds: why each round was measured.
        inside, between: the slowest link of each kind, measured alone.
        card_shared: whether workers of one host share a network card; `card_reason`: how that is known.
    """

    workers: tuple[Worker, ...]
    pairs: tuple[PairFound, ...]
    rounds: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    groups_reason: str
    inside: LinkRate
    between: LinkRate
    card_shared: bool
    card_reason: str
    suspects: tuple[Suspect, ...]
    took_s: float

    @property
    def rates(self) -> dict[Pair, float]:
        """Bytes/s by pair of seats."""
        return {(pair.one, pair.other): pair.link.bytes_per_s for pair in self.pairs}


def to_cluster(found: Findings) -> Cluster:
    """The cluster file's content: hosts, devices, groups, links, suspects."""
    names = [worker.name for worker in found.workers]
    hosts: dict[str, list[Worker]] = {}
    for worker in found.workers:
        hosts.setdefault(worker.facts.node, []).append(worker)
    blamed = [s for s in found.suspects if s.blame == "suspect"]
    reasons = {s.worker: "; ".join(t.reason for t in blamed if t.worker == s.worker) for s in blamed}
    return Cluster(
        nodes=tuple(
            Node(name=host, address=workers[0].facts.address, devices=_devices(workers))
            for host, workers in hosts.items()
        ),
        inside=Link(bytes_per_s=found.inside.bytes_per_s, latency_s=found.inside.latency_s),
        between=Link(
            bytes_per_s=found.between.bytes_per_s, latency_s=found.between.latency_s, shared=found.card_shared
        ),
        groups=tuple(
            Group(name=f"group{number}", workers=tuple(names[seat] for seat in group))
            for number, group in enumerate(found.groups)
        ),
        suspects=reasons,
    )


def write_findings(found: Findings, run_dir: Path) -> None:
    """Leave them for the process that started the probe; whole or not at all.

    Raises:
        OSError: the directory cannot be written.
    """
    aside = run_dir / f"{FILE}.tmp"
    aside.write_bytes(msgspec.json.encode(found))
    aside.replace(run_dir / FILE)


def read_findings(run_dir: Path) -> Findings:
    """What the workers left.

    Raises:
        FleetError: they left nothing.
    """
    try:
        return msgspec.json.decode((run_dir / FILE).read_bytes(), type=Findings)
    except (OSError, msgspec.DecodeError) as error:
        raise FleetError(
            f"the probe ended without findings: {error}", "let all hosts share the directory of --output"
        ) from error


def _devices(workers: Sequence[Worker]) -> tuple[Device, ...]:
    """One CPU for all its workers; an accelerator each."""
    if workers[0].facts.kind == "cpu":
        return (_device(workers, len(workers)),)
    return tuple(_device([worker], 1) for worker in workers)


def _device(workers: Sequence[Worker], count: int) -> Device:
    facts = workers[0].facts
    return Device(
        kind=facts.kind,
        cores=facts.cores,
        memory_bytes=facts.memory_bytes,
        flops_per_s={str(facts.threads): max(max(worker.alone.values()) for worker in workers)},
        name=facts.device,
        workers=count,
        rates={dtype: min(worker.together[dtype] for worker in workers) for dtype in workers[0].together},
    )
