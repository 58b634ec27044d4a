"""Splits machines into workers, and says what the other ways would have cost (source: ours).

Pure functions: `plan_workers` for one node whose workers hold everything, `plan_as_listed` for a cluster that
names its workers. What is sharded among them is `planner.plan_strategy`.
"""

from __future__ import annotations

import math

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.cluster.costs import JobCost
from shoestring.cluster.planner import PLAIN, StrategyPlan, StrategyRow
from shoestring.cluster.topology import Cluster, Device

WHOLE_BYTES = 4 + 4  # fp32 master weight and fp32 gradient of one parameter


class Alternative(Config):
    """One way to run the job; `rejected` says why it fell, empty for the chosen one."""

    name: str
    workers: int
    threads: int
    compute_s: float
    exchange_s: float
    step_s: float
    memory_bytes: int
    survives_a_worker: bool
    rejected: str = ""


class Plan(Config):
    """The choice, its reason, and everything that was weighed.

    Attributes:
        sharding: what is sharded, with all 27 ways; None: it was not weighed, everybody holds everything.
        dtype: of the working parameters: `bf16`, `fp32`, or `as_is`: what the model holds.
    """

    workers: int
    threads: int
    reason: str
    alternatives: tuple[Alternative, ...]
    sharding: StrategyPlan | None = None
    dtype: str = "as_is"


def plan_workers(
    job: JobCost, cluster: Cluster, wanted: int = 0, memory_limit_bytes: int = 0, whole: bool = True
) -> Plan:
    """Workers and threads for a data-parallel job on one node.

    Time of a step: compute = batch x flops / (workers x rate(threads)); exchange of a ring
    all-reduce = 2 (w-1)/w x gradient bytes / bandwidth + 2 (w-1) x latency (not overlapped).
    Memory: per worker base + parameters x (8 bytes of fp32 master and gradient + moments) + activations.

    Args:
        wanted: number of workers that the user asks for; 0: choose.
        memory_limit_bytes: per worker; 0: a CPU's workers share its memory, an accelerator has its own.
        whole: each worker holds everything; where that may be sharded, memory decides nothing here.

    Raises:
        ValueError: no way fits, or `wanted` is more than there are cores.
    """
    device = cluster.nodes[0].devices[0]
    ways = worker_counts(cluster)
    if wanted and wanted not in ways:
        ways.append(wanted)
    weighed = [_weigh(job, cluster, workers) for workers in sorted(ways)]
    rooms = {
        way.name: _room_bytes(device, _together(cluster, way.workers), memory_limit_bytes) for way in weighed
    }
    fitting = [way for way in weighed if not whole or way.memory_bytes <= rooms[way.name]]
    if wanted:
        fitting = [way for way in fitting if way.workers == wanted]
    if not fitting:
        least = min(weighed, key=lambda way: way.memory_bytes)
        raise ValueError(
            f"no way fits into {rooms[least.name]} bytes; the smallest needs {least.memory_bytes}"
        )
    chosen = min(fitting, key=lambda way: (way.step_s, way.workers))
    reason = f"{wanted} workers were asked for" if wanted else f"fastest of the {len(fitting)} that fit"
    return Plan(
        workers=chosen.workers,
        threads=chosen.threads,
        reason=f"{reason}: {chosen.step_s:.3g} s a step predicted, "
        f"{chosen.exchange_s / chosen.step_s:.0%} of it exchange",
        alternatives=tuple(
            way.model_copy(
                update={"rejected": _why_not(way, chosen, rooms[way.name] if whole else 0, wanted)}
            )
            for way in weighed
        ),
    )


def check_shared(workers: int, gpus: int, strategy: str) -> None:
    """Where workers share a GPU, whole state alone can be exchanged: NCCL wants a GPU for each.

    Args:
        workers: on one machine, at the most.

    Raises:
        ConfigError: they would.
    """
    if strategy != PLAIN and workers > gpus:
        raise ConfigError(
            f"{workers} workers on {gpus} GPUs cannot cut the state ({strategy}): NCCL wants a GPU for each",
            f"set fleet.members.workers={gpus} (and max_workers), or parallel.strategy={PLAIN}",
        )


def worker_counts(cluster: Cluster) -> list[int]:
    """How many workers the first node can be split into: divisors of a CPU's cores, or its accelerators."""
    devices = cluster.nodes[0].devices
    if devices[0].kind != "cpu":
        return [len(devices)]
    return [n for n in range(1, devices[0].cores + 1) if devices[0].cores % n == 0]


def plan_as_listed(cluster: Cluster, sharding: StrategyPlan) -> Plan:
    """Workers and threads as a cluster lists them, with the prediction of the strategy that was chosen."""
    devices = [device for node in cluster.nodes for device in node.devices]
    threads = min(_threads(device) for device in devices)
    workers = len(cluster.workers)
    name = f"{workers} workers x {threads} threads"
    way = _predicted(name, workers, threads, sharding.chosen)
    hosts = f"{len(cluster.nodes)} hosts" if len(cluster.nodes) > 1 else "one host"
    reason = f"the cluster file lists {workers} workers on {hosts}, in {len(cluster.islands)} islands"
    return Plan(workers=workers, threads=threads, reason=reason, alternatives=(way,), sharding=sharding)


def with_prediction(plan: Plan, row: StrategyRow) -> Plan:
    """The plan with what the chosen strategy costs in the place of what whole state would."""
    ways = tuple(
        way if way.rejected else _predicted(way.name, way.workers, way.threads, row)
        for way in plan.alternatives
    )
    return plan.model_copy(update={"alternatives": ways})


def _predicted(name: str, workers: int, threads: int, row: StrategyRow) -> Alternative:
    return Alternative(
        name=name,
        workers=workers,
        threads=threads,
        compute_s=row.compute_s,
        exchange_s=row.exposed_s,
        step_s=row.step_s,
        memory_bytes=workers * row.memory_bytes,
        survives_a_worker=row.survives == "whole",
    )


def _threads(device: Device) -> int:
    return max(1, device.cores // device.workers) if device.kind == "cpu" else 1


def _room_bytes(device: Device, together: int, limit_bytes: int) -> int:
    """What a way may take: the workers of a device together."""
    return min(device.memory_bytes, together * limit_bytes) if limit_bytes else device.memory_bytes


def _together(cluster: Cluster, workers: int) -> int:
    """Workers that have one device's memory together: all of a CPU's; those that share an accelerator."""
    devices = cluster.nodes[0].devices
    return workers if devices[0].kind == "cpu" else math.ceil(workers / len(devices))


def _weigh(job: JobCost, cluster: Cluster, workers: int) -> Alternative:
    device = cluster.nodes[0].devices[0]
    threads = max(1, device.cores // workers) if device.kind == "cpu" else 1
    together = _together(cluster, workers)
    # More workers than cores, or than accelerators, share them: the sum of their rates cannot grow.
    rate = device.flops_per_s[str(threads)] * min(
        1.0, device.cores / workers if device.kind == "cpu" else 1 / together
    )
    compute_s = job.batch * job.flops_per_sample / (workers * rate)
    link = cluster.inside
    on_wire = 2 * (workers - 1) / workers * job.parameters * job.gradient_bytes
    exchange_s = on_wire / link.bytes_per_s + 2 * (workers - 1) * link.latency_s
    state = job.base_bytes + job.parameters * (WHOLE_BYTES + job.moment_bytes)
    memory = together * (state + job.micro_batch * job.activation_bytes_per_sample)
    return Alternative(
        name=f"{workers} workers x {threads} threads",
        workers=workers,
        threads=threads,
        compute_s=compute_s,
        exchange_s=exchange_s,
        step_s=compute_s + exchange_s,
        memory_bytes=int(memory),
        survives_a_worker=workers > 1,
    )


def _why_not(way: Alternative, chosen: Alternative, memory_bytes: int, wanted: int) -> str:
    if way.name == chosen.name:
        return ""
    if memory_bytes and way.memory_bytes > memory_bytes:
        return f"needs {way.memory_bytes} bytes of {memory_bytes}"
    if wanted:
        return f"{wanted} workers were asked for (this one: {way.step_s / chosen.step_s:.2f} x the step time)"
    return f"{way.step_s / chosen.step_s:.2f} x the step time of the chosen way"
