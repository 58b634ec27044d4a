"""Chooses how many workers a job gets, and says what the other ways would have cost (source: ours).

A pure function of the job's cost, the cluster and the wishes. Assumptions stand with the formulas;
docs/design/cluster.md has them in one place.
"""

from __future__ import annotations

from shoestring.base.config import Config
from shoestring.cluster.topology import Cluster

STATE_BYTES_PER_PARAMETER = 4 + 4 + 8  # fp32 master weight, fp32 gradient, two fp32 moments


class JobCost(Config):
    """What a step costs, whoever does it.

    Attributes:
        parameters: all parameters; each worker holds them all.
        flops_per_sample: forward and backward, 6 x active parameters x tokens for a language model.
        activation_bytes_per_sample: kept between forward and backward.
        micro_batch: samples in memory at once.
        batch: samples of a global step.
        gradient_bytes: bytes of one parameter's gradient on the wire.
        base_bytes: a worker process before it holds anything.
    """

    parameters: int
    flops_per_sample: float
    activation_bytes_per_sample: float
    micro_batch: int
    batch: int
    gradient_bytes: int = 4
    base_bytes: int = 400 * 2**20


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
    """The choice, its reason, and everything that was weighed."""

    workers: int
    threads: int
    reason: str
    alternatives: tuple[Alternative, ...]


def plan_workers(job: JobCost, cluster: Cluster, wanted: int = 0) -> Plan:
    """Workers and threads for a data-parallel job on one node.

    Time of a step: compute = batch x flops / (workers x rate(threads)); exchange of a ring
    all-reduce = 2 (w-1)/w x gradient bytes / bandwidth + 2 (w-1) x latency (not overlapped).
    Memory: per worker base + 16 bytes a parameter (fp32 master, gradient, two moments) + activations.

    Args:
        wanted: number of workers that the user asks for; 0: choose.

    Raises:
        ValueError: no way fits, or `wanted` is more than there are cores.
    """
    device = cluster.nodes[0].devices[0]
    ways = (
        [n for n in range(1, device.cores + 1) if device.cores % n == 0]
        if device.kind == "cpu"
        else [len(cluster.nodes[0].devices)]
    )
    if wanted and wanted not in ways:
        ways.append(wanted)
    weighed = [_weigh(job, cluster, workers) for workers in sorted(ways)]
    fitting = [way for way in weighed if way.memory_bytes <= device.memory_bytes]
    if wanted:
        fitting = [way for way in fitting if way.workers == wanted]
    if not fitting:
        least = min(weighed, key=lambda way: way.memory_bytes)
        raise ValueError(
            f"no way fits into {device.memory_bytes} bytes; the smallest needs {least.memory_bytes}"
        )
    chosen = min(fitting, key=lambda way: (way.step_s, way.workers))
    reason = f"{wanted} workers were asked for" if wanted else f"fastest of the {len(fitting)} that fit"
    return Plan(
        workers=chosen.workers,
        threads=chosen.threads,
        reason=f"{reason}: {chosen.step_s:.3g} s a step predicted, "
        f"{chosen.exchange_s / chosen.step_s:.0%} of it exchange",
        alternatives=tuple(
            way.model_copy(update={"rejected": _why_not(way, chosen, device.memory_bytes, wanted)})
            for way in weighed
        ),
    )


def _weigh(job: JobCost, cluster: Cluster, workers: int) -> Alternative:
    device = cluster.nodes[0].devices[0]
    threads = max(1, device.cores // workers) if device.kind == "cpu" else 1
    # More workers than cores share them: the sum of their rates cannot grow.
    rate = device.flops_per_s[str(threads)] * min(
        1.0, device.cores / workers if device.kind == "cpu" else 1.0
    )
    compute_s = job.batch * job.flops_per_sample / (workers * rate)
    link = cluster.inside
    on_wire = 2 * (workers - 1) / workers * job.parameters * job.gradient_bytes
    exchange_s = on_wire / link.bytes_per_s + 2 * (workers - 1) * link.latency_s
    state = job.base_bytes + job.parameters * STATE_BYTES_PER_PARAMETER
    memory = workers * (state + job.micro_batch * job.activation_bytes_per_sample)
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
    if way.memory_bytes > memory_bytes:
        return f"needs {way.memory_bytes} bytes of {memory_bytes}"
    if wanted:
        return f"{wanted} workers were asked for (this one: {way.step_s / chosen.step_s:.2f} x the step time)"
    return f"{way.step_s / chosen.step_s:.2f} x the step time of the chosen way"
