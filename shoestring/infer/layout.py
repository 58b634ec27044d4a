"""The pools of a worker before anything was measured: how many processes, and their bounds (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from shoestring.infer.config import ROWS, InferConfig, StageConfig
from shoestring.infer.crew import Bounds
from shoestring.infer.graph import Graph
from shoestring.infer.pools import PoolPlan


@dataclass(frozen=True)
class Setting:
    """What an engine is told beside the job's settings.

    Attributes:
        who: this process, for the names of staged files.
        cores: that it may use.
        devices: `cuda:0` and so on; empty: stages compute on CPUs.
        chunk_rows: rows that a loader reads at a time.
        batches: stage -> items of the first batches.
        processes: pool -> processes to begin with.
        proven: stages that have worked in the trial.
        rows: of the source.
        one_by_one: only one pool works at a time, so that nobody's time is another's (of a trial).
    """

    who: str
    cores: float
    devices: tuple[str, ...] = ()
    chunk_rows: int = 1024
    batches: Mapping[str, int] = field(default_factory=dict)
    processes: Mapping[str, int] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()
    rows: int = 0
    one_by_one: bool = False


def plans_of(config: InferConfig, graph: Graph, setting: Setting) -> tuple[PoolPlan, ...]:
    """All pools in the order of the flow."""

    def count(name: str, wanted: int) -> int:
        return wanted or (setting.processes[name] if name in setting.processes else 1)

    load, write = config.pools.load, config.pools.write
    wanted_of = {name: node.config.processes for name, node in graph.nodes.items()}
    firsts = _that_fit(
        {name: count(name, wanted) for name, wanted in wanted_of.items()},
        {name for name, wanted in wanted_of.items() if wanted},
        shares_of(graph, setting),
        len(setting.devices),
    )
    plans = [PoolPlan("load", "load", ROWS, count("load", load), load > 0)]
    for name, node in graph.nodes.items():
        parent = "load" if node.parent == ROWS else node.parent
        plans.append(PoolPlan(name, "stage", parent, firsts[name], wanted_of[name] > 0))
    plans.append(PoolPlan("write", "write", "load", count("write", write), write > 0))
    return tuple(plans)


def bounds_of(config: InferConfig, graph: Graph) -> dict[str, Bounds]:
    """Pool -> what its processes may take."""
    limits = config.limits
    own = Bounds(limits.setup_s, limits.memory_bytes)
    stages = {name: Bounds(limits.setup_s, node.config.memory_bytes) for name, node in graph.nodes.items()}
    return {"load": own, **stages, "write": own}


def _that_fit(
    counts: Mapping[str, int], fixed: Collection[str], shares: Mapping[str, float], devices: int
) -> dict[str, int]:
    """Processes to begin with: those that are not fixed as far as GPUs have room, but one of each."""
    fitting = {name: count if name in fixed or not shares[name] else 1 for name, count in counts.items()}
    free = devices - sum(shares[name] * count for name, count in fitting.items())
    for name, count in counts.items():
        if fitting[name] < count:
            alone = devices * math.floor(1.0 / shares[name] + 1e-9)
            more = max(0, min(count - 1, alone - 1, math.floor(free / shares[name] + 1e-9)))
            fitting[name] += more
            free -= more * shares[name]
    return fitting


def most_of(stage: StageConfig, devices: Sequence[str]) -> int:
    """Processes of a stage that these GPUs have room for; 0: no bound."""
    share = _share(stage, devices)
    return max(1, len(devices) * int(1.0 / share + 1e-9)) if share else 0


def _share(stage: StageConfig, devices: Sequence[str]) -> float:
    """Part of a GPU that one of its processes has; 0: it computes on CPUs."""
    return stage.device_share if devices and stage.device != "cpu" else 0.0


def shares_of(graph: Graph, setting: Setting) -> dict[str, float]:
    """Stage -> part of a GPU that one of its processes has; 0: none."""
    return {name: _share(node.config, setting.devices) for name, node in graph.nodes.items()}
