"""What each pool of a worker does with its time, and what is changed by that (source: AntBatchInfer, elastic
controller). The decisions are those of `control.pools`; here they are fed, and their answers kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shoestring.control.pools import Kind, Pool, PoolsConfig, PoolState, Resize
from shoestring.fleet.job_status import PoolShown
from shoestring.infer.config import ROWS
from shoestring.infer.wire import Cost

KEEP = 0.7
"""Of earlier measurements, at each look: costs follow the data within seconds."""

Decide = Callable[[PoolState, PoolsConfig], tuple[tuple[Resize, ...], str]]


@dataclass(frozen=True)
class PoolPlan:
    """A pool as it was asked for.

    Attributes:
        parent: the pool that its items come from; of loaders `rows`, of writers the loaders.
        processes: to begin with; `fixed`: the user has said how many.
    """

    name: str
    kind: Kind
    parent: str
    processes: int
    fixed: bool


@dataclass(frozen=True)
class Now:
    """What is seen of a pool at a look.

    Attributes:
        processes: that it should have; `ready`: that are set up.
        occupied_s: of its processes' time with a task since the last look.
        waiting: items.
        batch: items of a batch; 0: it has none.
        most: processes that it may have now; 0: no bound.
    """

    processes: int
    ready: int
    occupied_s: float
    waiting: int
    batch: int = 0
    restarts: int = 0
    memory_bytes: int = 0
    most: int = 0


@dataclass
class _Meter:
    """Sums over the last looks, older ones fading."""

    came: int = 0
    gave: int = 0
    items: float = 0.0
    occupied_s: float = 0.0
    took_s: float = 0.0
    cpu_s: float = 0.0
    fresh_items: int = 0
    seconds: float = 0.0


class Pools:
    """The pools of a worker, measured.

    Args:
        plans: in the order of the flow, parents first.
        config: how processes are moved.
        cores: that this worker may use.
        decide: the policy.
        now: the time.
    """

    def __init__(
        self, plans: tuple[PoolPlan, ...], config: PoolsConfig, cores: float, decide: Decide, now: float
    ) -> None:
        self.plans = plans
        self._config = config
        self._cores = cores
        self._decide = decide
        self._meters = {plan.name: _Meter() for plan in plans}
        self._by_name = {plan.name: plan for plan in plans}
        self._looked_s = self._changed_s = now
        self.shown: tuple[PoolShown, ...] = ()

    def saw(self, pool: str, came: int, gave: int, cost: Cost) -> None:
        """A task of `came` items is through, `gave` came out of it."""
        meter = self._meters[pool]
        meter.came += came
        meter.gave += gave
        meter.fresh_items += came
        meter.took_s += cost.took_s
        meter.cpu_s += cost.cpu_s

    def items_per_row(self, pool: str) -> float:
        """Items that come to a pool for a row of the source."""
        parent = self._by_name[pool].parent
        if parent == ROWS or self._by_name[parent].kind == "load":
            return 1.0
        meter = self._meters[parent]
        return self.items_per_row(parent) * (meter.gave / meter.came if meter.came else 1.0)

    def due(self, now: float) -> bool:
        """Whether it is time for a look."""
        return now - self._looked_s >= self._config.interval_s

    def look(self, now: float, seen: Mapping[str, Now]) -> tuple[tuple[Resize, ...], str]:
        """Measure since the last look, and ask the policy; which pools to resize, and why."""
        took_s = max(1e-9, now - self._looked_s)
        self._looked_s = now
        pools, shown = [], []
        for plan in self.plans:
            measured, one = self._measured(plan, seen[plan.name], took_s)
            pools.append(measured)
            shown.append(one)
        self.shown = tuple(shown)
        resizes, reason = self._decide(
            PoolState(tuple(pools), self._cores, now - self._changed_s), self._config
        )
        if resizes:
            self._changed_s = now
        return resizes, reason

    def _measured(self, plan: PoolPlan, seen: Now, took_s: float) -> tuple[Pool, PoolShown]:
        meter = self._meters[plan.name]
        fresh = meter.fresh_items
        meter.items = KEEP * meter.items + fresh
        meter.occupied_s = KEEP * meter.occupied_s + seen.occupied_s
        meter.seconds = KEEP * meter.seconds + took_s
        meter.fresh_items = 0
        busy = min(1.0, seen.occupied_s / (max(1, seen.ready) * took_s))
        share = meter.cpu_s / meter.took_s if meter.took_s > 0 else 1.0
        per_row = self.items_per_row(plan.name)
        known = meter.came > 0 and meter.items > 1e-3
        row_s = meter.occupied_s / meter.items * per_row if known else math.nan
        meter.took_s, meter.cpu_s = KEEP * meter.took_s, KEEP * meter.cpu_s
        pool = Pool(
            plan.name, plan.kind, seen.processes, plan.fixed, busy, share, seen.waiting, row_s, seen.most
        )
        rate = meter.items / meter.seconds / per_row if per_row > 0 else 0.0
        return pool, PoolShown(
            plan.name, plan.kind, seen.processes, round(busy, 3), seen.waiting, rate,
            0.0 if math.isnan(row_s) else row_s, round(share, 3), seen.batch, seen.restarts,
            seen.memory_bytes,
        )  # fmt: skip
