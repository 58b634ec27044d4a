"""From settings and machines to the plan of a run: who computes, what is sharded among them (source: ours).

A job says what a step costs; where the workers are comes from a cluster file, or this machine is described.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shoestring.base.errors import ConfigError
from shoestring.cluster.costs import JobCost
from shoestring.cluster.planner import AUTO, PLAIN, StrategyPlan, layout_for, plan_strategy
from shoestring.cluster.topology import (
    Cluster,
    Device,
    Link,
    Node,
    load_cluster,
    usable_cores,
    usable_memory_bytes,
)
from shoestring.cluster.workers import (
    Plan,
    check_shared,
    plan_as_listed,
    plan_workers,
    with_prediction,
    worker_counts,
)
from shoestring.train.config import ParallelConfig
from shoestring.train.runs import JobConfig

# Number of threads (as text) -> compute dtype -> FLOP/s of a matrix product.
Rates = dict[str, dict[str, float]]
# An assumption, not a measurement: gloo between two processes of one machine. It only has to order the
# alternatives; `shoestring probe` measures links and writes them into a cluster file.
LOOPBACK = Link(bytes_per_s=1.5e9, latency_s=2e-4)
SMALLER = "choose a smaller model or train.micro_batch"
PROBE = "run `shoestring probe` on the machines of this run"


@dataclass(frozen=True)
class Costs:
    """What a step costs.

    Attributes:
        whole: where everybody holds everything, in the model's own dtype.
        sharded: with the working parameters in the dtype that sharded state is kept in.
    """

    whole: JobCost
    sharded: JobCost

    def over(self, ranks: int) -> Costs:
        """The same with micro-batches as large as they get where a batch is shared by so many ranks."""
        return Costs(_shared(self.whole, ranks), _shared(self.sharded, ranks))


def _shared(job: JobCost, ranks: int) -> JobCost:
    share = -(-job.batch // ranks)
    micro_steps = -(-share // job.micro_batch)
    return job.model_copy(update={"micro_batch": -(-share // micro_steps), "accumulation": micro_steps})


def listed_cluster(config: JobConfig) -> Cluster | None:
    """The cluster of `parallel.cluster`, held to what this run would start; None: no file is given.

    Raises:
        ConfigError: the file cannot be used, or names other workers than the run would start.
    """
    path = config.parallel.cluster
    if not path:
        return None
    cluster = load_cluster(Path(path))
    listed, wanted = len(cluster.workers), config.fleet.members.workers
    if wanted and wanted != listed:
        raise ConfigError(
            f"{path} does not match the run: it names {listed} workers, fleet.members.workers is {wanted}",
            f"set fleet.members.workers=0 (as many as the file names), or probe with --workers {wanted}",
        )
    if config.fleet.transport != "ray":
        _check_here(cluster, path)
    return cluster


def _check_here(cluster: Cluster, path: str) -> None:
    """All workers would start on this machine: it has to be the only one, with these devices."""
    if len(cluster.nodes) > 1:
        raise ConfigError(
            f"{path} does not match the machines: it names {len(cluster.nodes)} hosts "
            f"({_shown([node.name for node in cluster.nodes])}), and all workers would start on this one",
            f"set fleet.transport=ray, or {PROBE}",
        )
    gpus, cores = torch.cuda.device_count(), usable_cores()
    here = f"{gpus} cuda devices" if gpus else f"a cpu of {cores} cores"
    devices = cluster.nodes[0].devices
    kinds = {device.kind for device in devices}
    named = f"{len(devices)} cuda devices" if "cuda" in kinds else f"a cpu of {devices[0].cores} cores"
    if kinds != {"cuda" if gpus else "cpu"} or (
        len(devices) > gpus if gpus else max(device.cores for device in devices) > cores
    ):
        raise ConfigError(
            f"{path} does not match the machine: it names {named}, here is {here}", f"{PROBE} again"
        )


def described_cluster(flops_per_s: dict[str, float]) -> Cluster:
    """This machine, with the assumed loopback between its workers.

    Args:
        flops_per_s: of a matrix product in the planned dtype, by number of threads.
    """
    devices: tuple[Device, ...]
    if torch.cuda.is_available():
        memory_bytes = torch.cuda.get_device_properties(0).total_memory
        one = Device(kind="cuda", cores=1, memory_bytes=memory_bytes, flops_per_s=flops_per_s)
        devices = (one,) * torch.cuda.device_count()
    else:
        memory_bytes = usable_memory_bytes()
        devices = (
            Device(kind="cpu", cores=usable_cores(), memory_bytes=memory_bytes, flops_per_s=flops_per_s),
        )
    return Cluster(nodes=(Node(name="here", devices=devices),), inside=LOOPBACK, between=LOOPBACK)


def rates_in(cluster: Cluster, dtypes: Sequence[str]) -> Rates:
    """The slowest device's rates by dtype, under the number of its threads; empty where some are missing."""
    devices = [device for node in cluster.nodes for device in node.devices]
    if any(dtype not in device.rates for device in devices for dtype in dtypes):
        return {}
    threads = min(max(1, device.cores // device.workers) for device in devices)
    return {str(threads): {dtype: min(device.rates[dtype] for device in devices) for dtype in dtypes}}


def plan_listed(costs: Costs, cluster: Cluster, parallel: ParallelConfig) -> Plan:
    """The plan for the workers that a cluster file names: the strategy is chosen by its measured links.

    One machine without islands is as in `plan_here`: everybody holds everything where that fits.

    Raises:
        ConfigError: nothing fits, or not what is wanted, or the groups do not divide; with what would do.
    """
    layout, why = layout_for(cluster, parallel.group_size)
    costs = costs.over(layout.size)
    sharding = plan_strategy(
        costs.sharded,
        cluster,
        layout,
        parallel.memory_limit_bytes,
        parallel.strategy,
        whole=costs.whole,
        preferred=PLAIN if len(cluster.nodes) == len(cluster.islands) == 1 else "",
    )
    _check_nodes(cluster, sharding.strategy)
    plan = plan_as_listed(cluster, sharding)
    reason = f"{plan.reason}; {why}"
    return plan.model_copy(update={"reason": reason, "dtype": _dtype(costs, sharding, parallel)})


def plan_here(costs: Costs, cluster: Cluster, parallel: ParallelConfig, wanted: int) -> Plan:
    """The plan for one machine whose links nobody has measured.

    Without memory pressure and a wish everybody holds everything. Where that fits no way, as many workers as
    there can be share the state.

    Args:
        wanted: workers that the user asks for; 0: choose.

    Raises:
        ConfigError: as `plan_listed`.
    """
    limit_bytes = parallel.memory_limit_bytes
    whole = parallel.strategy in (AUTO, PLAIN)
    try:
        plan = plan_workers(costs.whole, cluster, wanted, limit_bytes, whole)
    except ValueError as error:
        if parallel.strategy == PLAIN:
            raise ConfigError(str(error), f"{SMALLER}, or parallel.strategy=auto") from error
        most = wanted or max(worker_counts(cluster))
        plan = plan_workers(costs.whole, cluster, most, limit_bytes, whole=False)
        reason = f"whole state fits no way ({error}); shared by {most} workers"
        plan = plan.model_copy(update={"reason": reason})
    there = _with_workers(cluster, plan.workers)
    layout, _ = layout_for(there, parallel.group_size)
    costs = costs.over(layout.size)
    sharding = plan_strategy(
        costs.sharded,
        there,
        layout,
        limit_bytes,
        parallel.strategy,
        whole=costs.whole,
        preferred=PLAIN,
    )
    _check_nodes(there, sharding.strategy)
    made = plan.model_copy(update={"sharding": sharding, "dtype": _dtype(costs, sharding, parallel)})
    return made if sharding.strategy == PLAIN else with_prediction(made, sharding.chosen)


def _dtype(costs: Costs, sharding: StrategyPlan, parallel: ParallelConfig) -> str:
    if parallel.dtype != AUTO:
        return parallel.dtype
    return "as_is" if sharding.strategy == PLAIN else costs.sharded.compute_dtype


def _check_nodes(cluster: Cluster, strategy: str) -> None:
    for node in cluster.nodes:
        if node.devices[0].kind != "cpu":
            check_shared(len(node.workers), len(node.devices), strategy)


def _with_workers(cluster: Cluster, workers: int) -> Cluster:
    """With the workers spread over the devices of the only machine."""
    node = cluster.nodes[0]
    each, more = divmod(workers, len(node.devices))
    devices = tuple(
        device.model_copy(update={"workers": each + (number < more)})
        for number, device in enumerate(node.devices)
        if each or number < more
    )
    return cluster.model_copy(update={"nodes": (node.model_copy(update={"devices": devices}),)})


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
