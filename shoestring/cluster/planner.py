"""Chooses what of a job's state is sharded over a cluster, and says what the other ways would have cost
(source: ours).

Pure functions of the job's cost, the cluster and the wishes. Assumptions stand with the formulas (`costs`,
`wires`) and in docs/design/cluster.md. How a machine is split into workers is in `workers`.
"""

from __future__ import annotations

import math

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes, format_duration
from shoestring.cluster.costs import CPU_OVERLAP, CUDA_OVERLAP, JobCost, OverlapModel, held, step_cost
from shoestring.cluster.strategies import (
    BUILT,
    Layout,
    Source,
    Strategy,
    all_strategies,
    equal_groups,
    leftover,
    parse_strategy,
)
from shoestring.cluster.topology import Cluster
from shoestring.cluster.wires import Method, Wires, wires_of

__all__ = [
    "JobCost",
    "StrategyPlan",
    "StrategyRow",
    "layout_for",
    "plan_strategy",
]

TIE = 1.02  # step times closer than that are the same: the prediction is no better
AUTO = "auto"
PLAIN = "NNN"
_SURVIVAL: tuple[Source, ...] = ("whole", "masters", "lost")  # best first


class StrategyRow(Config):
    """What one strategy would cost.

    Attributes:
        parameters_bytes, gradients_bytes, states_bytes, working_bytes, activations_bytes, base_bytes: per
            rank; `memory_bytes` is their sum.
        compute_s, communication_s, exposed_s, step_s: of an optimizer step (see `costs.StepCost`).
        worker_bytes, card_bytes, local_bytes: sent in a step by a worker, by the busiest node's card, and
            inside it.
        rings: what for -> ring method.
        price: of a step, in the cluster's currency; 0 where it names no prices.
        survives: what the others still hold after one rank is lost: `whole`: all of it; `masters`:
            parameters, from which masters can be made, without moments; `lost`: back to the checkpoint.
        same_as: the strategy of which this one is another name on this layout, or "".
        dominated: why it is never the best choice, or "".
        built: whether the engine has it.
        fits: whether it stays below the memory limit.
        rejected: why it was not chosen; "" for the chosen one.
    """

    name: str
    parameters_bytes: int
    gradients_bytes: int
    states_bytes: int
    working_bytes: int
    activations_bytes: int
    base_bytes: int
    memory_bytes: int
    compute_s: float
    communication_s: float
    exposed_s: float
    step_s: float
    worker_bytes: float
    card_bytes: float
    local_bytes: float
    rings: dict[str, Method]
    price: float
    survives: Source
    same_as: str
    dominated: str
    built: bool
    fits: bool
    rejected: str = ""

    @property
    def choosable(self) -> bool:
        """Whether it may be chosen where it fits."""
        return self.built and not self.same_as


class StrategyPlan(Config):
    """The strategy, its reason, and all 27 that were weighed.

    Attributes:
        groups: ranks of each group.
        memory_limit_bytes: per rank.
    """

    strategy: str
    reason: str
    groups: tuple[tuple[int, ...], ...]
    memory_limit_bytes: int
    accumulation: int
    rows: tuple[StrategyRow, ...]

    @property
    def chosen(self) -> StrategyRow:
        """The row of the choice."""
        return next(row for row in self.rows if row.name == self.strategy)


def layout_for(cluster: Cluster, group_size: int = 0) -> tuple[Layout, str]:
    """Groups of ranks on a cluster, and why these; rank r is worker r of `cluster.workers`.

    Args:
        group_size: wished for; 0: the cluster's islands, cut to their greatest common size where they differ.

    Raises:
        ConfigError: the wished size does not divide the workers.
    """
    ranks = len(cluster.workers)
    if group_size:
        return equal_groups(ranks, group_size), f"groups of {group_size} were asked for"
    sizes = [len(island.workers) for island in cluster.islands]
    common = math.gcd(*sizes)
    if len(set(sizes)) == 1:
        return equal_groups(ranks, common), f"{len(sizes)} islands of {common} workers"
    shown = ", ".join(map(str, sizes))
    return equal_groups(ranks, common), f"islands of {shown} workers are cut into groups of {common}"


def plan_strategy(
    job: JobCost,
    cluster: Cluster,
    layout: Layout,
    memory_limit_bytes: int = 0,
    wanted: str = AUTO,
    overlap: OverlapModel | None = None,
    whole: JobCost | None = None,
    preferred: str = "",
) -> StrategyPlan:
    """The strategy for a job whose ranks lie as `layout` says.

    The fastest one that the engine has and that fits; among those within 2% of it, first one that survives
    the loss of a rank, then the one with fewest bytes.

    Args:
        memory_limit_bytes: per rank; 0: the smallest share that a worker has of its device's memory.
        wanted: `auto`, or a strategy that the user asks for.
        overlap: coefficients; None: the defaults for the cluster's kind of device.
        whole: the job under NNN, where that leaves the model's dtype as it is; None: the same job.
        preferred: taken by `auto` wherever it fits, if others are faster or not; empty: none.

    Raises:
        ConfigError: nothing fits, or not what is wanted, with the smallest that would; `wanted` is no
            strategy, is not built, or has no groups to work with; ranks and workers do not match.
    """
    wires = wires_of(cluster, layout)
    limit_bytes = memory_limit_bytes or _worker_memory_bytes(cluster, layout)
    devices = [device for node in cluster.nodes for device in node.devices]
    model = overlap or (CPU_OVERLAP if devices[0].kind == "cpu" else CUDA_OVERLAP)
    weighed = [
        _weigh_strategy(
            whole if whole and one.name == PLAIN else job, one, wires, cluster, model, limit_bytes
        )
        for one in all_strategies()
    ]
    rows = [row.model_copy(update={"dominated": row.dominated or _beaten(row, weighed)}) for row in weighed]
    chosen, reason = _choose(rows, wires, cluster, limit_bytes, wanted, preferred)
    return StrategyPlan(
        strategy=chosen.name,
        reason=f"{reason}: {format_duration(chosen.step_s)} a step predicted, "
        f"{chosen.exposed_s / chosen.step_s:.0%} of it waiting for the network, "
        f"{format_bytes(chosen.memory_bytes)} of {format_bytes(limit_bytes)} a rank",
        groups=layout.groups,
        memory_limit_bytes=limit_bytes,
        accumulation=job.micro_steps(layout.size),
        rows=tuple(
            row.model_copy(
                update={"rejected": _why_not_strategy(row, chosen, limit_bytes, wanted, preferred)}
            )
            for row in rows
        ),
    )


def _weigh_strategy(
    job: JobCost, strategy: Strategy, wires: Wires, cluster: Cluster, model: OverlapModel, limit_bytes: int
) -> StrategyRow:
    memory = held(job, strategy, wires)
    cost = step_cost(job, strategy, wires, cluster, model)
    per_hour = sum(node.price_per_hour for node in cluster.nodes)
    return StrategyRow(
        name=strategy.name,
        parameters_bytes=memory.parameters_bytes,
        gradients_bytes=memory.gradients_bytes,
        states_bytes=memory.states_bytes,
        working_bytes=memory.working_bytes,
        activations_bytes=memory.activations_bytes,
        base_bytes=memory.base_bytes,
        memory_bytes=memory.memory_bytes,
        compute_s=cost.compute_s,
        communication_s=cost.communication_s,
        exposed_s=cost.exposed_s,
        step_s=cost.step_s,
        worker_bytes=cost.worker_bytes,
        card_bytes=cost.card_bytes,
        local_bytes=cost.local_bytes,
        rings=cost.rings,
        price=per_hour * cost.step_s / 3600,
        survives=survival(strategy, wires.layout),
        same_as=_same_as(strategy, wires.layout),
        dominated=strategy.dominated,
        built=strategy.name in BUILT,
        fits=memory.memory_bytes <= limit_bytes,
    )


def survival(strategy: Strategy, layout: Layout) -> Source:
    """What the other ranks still hold after one is lost, whichever it is.

    It depends on whether there is another rank in the group and another group, not on how many: so two stand
        for all.
    """
    group_size = min(2, layout.group_size)
    small = equal_groups(min(2, layout.count) * group_size, group_size)
    left = leftover(strategy, small, range(1, small.size), range(1, small.size))
    return "whole" if left.complete else "masters" if left.usable else "lost"


def _same_as(strategy: Strategy, layout: Layout) -> str:
    """The plainest name of what a strategy is on this layout: a built one, without I if there is one."""

    def parts(other: Strategy) -> list[int]:
        return [layout.parts(letter) for letter in other.name]

    twins = [other for other in all_strategies() if parts(other) == parts(strategy)]
    plainest = min(twins, key=lambda other: (other.name not in BUILT, other.needs_groups))
    return "" if plainest.name == strategy.name else plainest.name


def _beaten(row: StrategyRow, rows: list[StrategyRow]) -> str:
    """By which strategy that could be chosen, in both time and memory."""
    better = [
        other
        for other in rows
        if other.choosable
        and not row.same_as
        and other.name != row.name
        and other.step_s <= row.step_s
        and other.memory_bytes <= row.memory_bytes
        and (other.step_s, other.memory_bytes) != (row.step_s, row.memory_bytes)
    ]
    if not better:
        return ""
    best = min(better, key=lambda other: (other.step_s, other.memory_bytes))
    return (
        f"{best.name} takes {best.step_s / row.step_s:.0%} of its time "
        f"and {best.memory_bytes / row.memory_bytes:.0%} of its memory"
    )


def _choose(
    rows: list[StrategyRow], wires: Wires, cluster: Cluster, limit_bytes: int, wanted: str, preferred: str
) -> tuple[StrategyRow, str]:
    fitting = [row for row in rows if row.choosable and row.fits]
    if wanted != AUTO:
        chosen = _follow(rows, fitting, wires, cluster, limit_bytes, wanted)
        same = "" if chosen.name == wanted.upper() else f" ({chosen.name} is the same here)"
        return chosen, f"{wanted.upper()} was asked for{same}"
    if not fitting:
        least = min((row for row in rows if row.choosable), key=lambda row: row.memory_bytes)
        raise ConfigError(
            f"no strategy fits into {limit_bytes} bytes a rank; the smallest, {least.name}, needs "
            f"{least.memory_bytes}",
            "take more ranks, a smaller model or micro-batch, or raise the memory limit",
        )
    for row in fitting:
        if row.name == preferred:
            return row, "it fits, and on one machine memory alone is a reason to shard"
    fastest = min(fitting, key=lambda row: row.step_s)
    near = [row for row in fitting if row.step_s <= TIE * fastest.step_s]
    chosen = min(near, key=lambda row: (_SURVIVAL.index(row.survives), row.memory_bytes, row.step_s))
    if chosen is fastest:
        return chosen, f"fastest of the {len(fitting)} that fit"
    merit = "survives a lost rank" if chosen.survives != fastest.survives else "holds fewer bytes"
    return chosen, f"as fast as {fastest.name} within 2% and {merit} ({len(fitting)} fit)"


def _follow(
    rows: list[StrategyRow],
    fitting: list[StrategyRow],
    wires: Wires,
    cluster: Cluster,
    limit_bytes: int,
    wanted: str,
) -> StrategyRow:
    """The row of a wish that can be followed."""
    strategy = parse_strategy(wanted)
    row = next(row for row in rows if row.name == strategy.name)
    sizes = [len(island.workers) for island in cluster.islands]
    if strategy.needs_groups and wires.layout.group_size == 1 and len(set(sizes)) > 1:
        raise ConfigError(
            f"{row.name} needs equal groups; the cluster's islands have {', '.join(map(str, sizes))} workers",
            f"take as many workers of each island, or `auto`, or {row.same_as}",
        )
    if not row.built and row.same_as not in BUILT:
        raise ConfigError(
            f"{row.name} is not built: {row.dominated or 'no part of training needs it'}",
            f"take `auto`, or one of {', '.join(BUILT)}",
        )
    if not row.fits:
        could = fitting or [other for other in rows if other.choosable]
        least = min(could, key=lambda other: other.memory_bytes)
        raise ConfigError(
            f"{row.name} needs {row.memory_bytes} bytes a rank of {limit_bytes}; the smallest, {least.name}, "
            f"needs {least.memory_bytes}",
            f"take `auto` or {least.name}"
            if fitting
            else "take more ranks, or a smaller model or micro-batch",
        )
    return row if row.built else next(other for other in rows if other.name == row.same_as)


def _worker_memory_bytes(cluster: Cluster, layout: Layout) -> int:
    devices = [device for node in cluster.nodes for device in node.devices]
    more = layout.size / len(cluster.workers)  # ranks to a worker, on one node that names fewer
    return int(min(device.memory_bytes / (device.workers * more) for device in devices))


def _why_not_strategy(
    row: StrategyRow, chosen: StrategyRow, limit_bytes: int, wanted: str, preferred: str
) -> str:
    if row.name == chosen.name:
        return ""
    if row.same_as:
        return f"the same as {row.same_as} on this layout"
    if not row.built:
        return f"not built: {row.dominated}" if row.dominated else "not built"
    if not row.fits:
        return f"needs {format_bytes(row.memory_bytes)} of {format_bytes(limit_bytes)}"
    slower = f"{row.step_s / chosen.step_s:.2f} x the step time of {chosen.name}"
    if wanted != AUTO:
        return f"{chosen.name} was asked for (this one: {slower})"
    if chosen.name == preferred:
        return f"{slower}, but on one machine memory alone counts"
    if row.step_s <= TIE * chosen.step_s:
        return f"{slower}, within what a prediction can tell, but it {_lacks(row, chosen)}"
    return slower


def _lacks(row: StrategyRow, chosen: StrategyRow) -> str:
    if row.survives != chosen.survives:
        return "does not survive a lost rank as well"
    return f"holds {row.memory_bytes / chosen.memory_bytes:.2f} x the bytes"
