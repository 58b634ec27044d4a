"""What of the machine a worker's processes get: GPUs, threads, shared memory (source: ours)."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from shoestring.base.errors import ConfigError
from shoestring.cluster.topology import usable_memory_bytes
from shoestring.data.row_index import RowIndex
from shoestring.infer.config import InferConfig
from shoestring.infer.graph import Graph
from shoestring.infer.kids import Outfit
from shoestring.infer.pressure import LEAST_CHUNK_BYTES, Budget, default_bytes
from shoestring.infer.shared import Segments, free_bytes

_GPU = re.compile(r"nvidia\d+")


def devices_of(config: InferConfig, number: int, workers: int, here: int = -1) -> tuple[str, ...]:
    """GPUs of worker `number`, of those of this machine; empty where no stage wants one.

    Args:
        workers: that share the machine: each gets its own GPUs, or one together with others.
        here: GPUs that there are; -1: they are counted.

    Raises:
        ConfigError: a stage wants one, and there is none.
    """
    if all(stage.device == "cpu" for stage in config.stages):
        return ()
    count = _count_gpus() if here < 0 else here
    if not count:
        wanting = [stage.name or stage.uses for stage in config.stages if stage.device.startswith("cuda")]
        if wanting:
            raise ConfigError(
                f"stage {wanting[0]} wants a GPU, and this machine has none",
                "set its `device` to cpu, or empty",
            )
        return ()
    own = range(number % workers, count, workers) if workers <= count else [number % count]
    return tuple(f"cuda:{index}" for index in own)


def workers_here(config: InferConfig) -> int:
    """Workers that share a machine, when all that may come have come: under Ray each has a host for itself,
    as far as anybody knows."""
    members = config.fleet.members
    return 1 if config.fleet.transport == "ray" else max(1, members.workers, members.max_workers)


def outfits(graph: Graph, cores: float) -> dict[str, Outfit]:
    """What processes of each pool are given. A stage whose processes are fixed at fewer than there are cores
    computes with as many threads as that leaves each; where they come and go, each has one."""
    found = {"load": Outfit(), "write": Outfit()}
    for name, node in graph.nodes.items():
        fixed = node.config.processes
        threads = max(1, int(cores // fixed)) if fixed else 1
        found[name] = Outfit(node.config.device_share, threads)
    return found


def index_at(path: Path) -> RowIndex:
    """The rows of the job, as its run keeps them.

    Raises:
        ConfigError: they are not on this host. DataError: they are damaged.
    """
    if not path.exists():
        raise ConfigError(
            f"{path} is not there on host {socket.gethostname()}: workers read it from the run's directory",
            "keep runs on a file system that all hosts share: --runs-dir DIR",
        )
    return RowIndex.load(path)


def budget_for(config: InferConfig, segments: Segments) -> Budget:
    """Memory of one worker: shared, for rows in flight, and the rest of its share for its processes."""
    total, free = _total_bytes(segments.folder), free_bytes(segments.folder)
    share_bytes = usable_memory_bytes() // workers_here(config)
    limit = default_bytes(config.limits.segment_bytes, share_bytes, total, free)
    return Budget(limit, total, free, processes_bytes=max(LEAST_CHUNK_BYTES, share_bytes - limit))


def look(budget: Budget, segments: Segments) -> None:
    """How much of the place that segments are in is free now."""
    budget.free_bytes = free_bytes(segments.folder)


def _total_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize


def _count_gpus() -> int:
    """GPUs that this process may use, found without touching them: a fork must stay possible."""
    present = sum(bool(_GPU.fullmatch(entry.name)) for entry in Path("/dev").iterdir())
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        return present
    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    return min(present, len([one for one in visible.split(",") if one.strip() not in ("", "-1")]))
