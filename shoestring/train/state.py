"""What a worker holds between two steps: model, optimizer state or its shards, and how many steps are in
them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch._dynamo  # the first optimizer would, for a second in each worker; here once, before the fork
from torch import Tensor, nn

from shoestring.cluster.strategies import Layout, Strategy, parse_strategy
from shoestring.fleet.messages import Held
from shoestring.parallel.paro import ShardedOptimizer, own_tensors, shard, state_tensors
from shoestring.parallel.paro.exchange import Exchange
from shoestring.parallel.paro.recut import Holding, Recut, recut
from shoestring.train.task import Task

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class TrainState:
    """Model and optimizer of a task, made from the seed; sharded once a round says how.

    Attributes:
        step: applied steps; -1 while the tensors hold nothing that may be used.
        ready: the step that can be applied without asking anybody, as all have agreed to it; -1: none.
        model: the task's model on the device.
        inner: the task's optimizer; each group keeps its peak rate as `peak_lr`.
        round_id: the round whose layout the shards are cut by.
        outer: momentum of the outer optimizer by parameter, where workers take local steps; else empty.

    Args:
        cut: whether the state is going to be cut, so that the model need not be built whole.
        updated: whether it is updated here; if not, no optimizer state is made.
    """

    def __init__(
        self, task: Task, device: torch.device, seed: int, cut: bool = False, updated: bool = True
    ) -> None:
        self.step = self.ready = self.round_id = -1
        self._task = task
        self._device = device
        self.model: nn.Module = self._build(cut, seed)
        self.inner = task.optimizer(self.model) if updated else _without_state(self.model)
        for group in self.inner.param_groups:
            group["peak_lr"] = group["lr"]
        self._sharded: ShardedOptimizer | None = None
        self.outer: dict[str, Tensor] = {}

    def _build(self, cut: bool, seed: int) -> nn.Module:
        """The model; one that will be cut is never whole anywhere, where the task can bring it in parts."""
        torch.manual_seed(seed)
        if cut:
            model = self._task.build(torch.device("meta"))
            if self._task.parallel_layout(model).initial is not None:
                return model
            torch.manual_seed(seed)  # a task that heeds no device has drawn its weights already
        return self._task.build(self._device).to(self._device)

    @property
    def sharded(self) -> ShardedOptimizer:
        """The sharded optimizer, after `lay_out`."""
        assert self._sharded is not None
        return self._sharded

    @property
    def laid_out(self) -> bool:
        """Whether `lay_out` was called."""
        return self._sharded is not None

    def with_outer(self) -> None:
        """Workers take local steps, and an outer optimizer takes what they make of them."""
        self.outer = {piece.name: torch.zeros_like(piece.master.data) for piece in self.sharded.pieces}

    def lay_out(
        self, strategy: Strategy, exchange: Exchange, dtype: str, wire: str, whole: nn.Module | None = None
    ) -> None:
        """Shard for the first time.

        Args:
            dtype: of the working parameters: `bf16`, `fp32`, or `as_is`: whatever the model holds.
            wire: of gradients on the network: `bf16`, `fp32`, or `as_is`: like the accumulated ones.
            whole: the model to ask for initial values, where parts were taken out of this one.
        """
        declared = self._task.parallel_layout(self.model)
        chosen = DTYPES[dtype] if dtype in DTYPES else None
        on_meta = next(self.model.parameters()).is_meta

        def dtype_of(name: str, parameter: nn.Parameter) -> torch.dtype:
            changes = chosen is not None and parameter.is_floating_point() and not declared.keeps_fp32(name)
            return chosen if changes and chosen is not None else parameter.dtype

        self._sharded = shard(
            self.model,
            self.inner,
            strategy.name,
            exchange=exchange,
            units=() if strategy.name == "NNN" else declared.units,
            dtype=dtype_of,
            wire_dtype=DTYPES[wire] if wire in DTYPES else None,
            methods=declared.methods,
            device=self._device,
            initial=declared.initial(whole or self.model) if declared.initial and on_meta else None,
        )

    def lay_out_again(
        self, strategy: Strategy, exchange: Exchange, holdings: Sequence[Holding | None]
    ) -> Recut | None:
        """Other ranks: new shards from those that `holdings` says are good; None where only the exchange
        changed.

        Raises:
            PeerLostError: a peer is gone; the state is void.
        """
        there = all(
            h is not None and h.layout == exchange.layout and h.rank == r for r, h in enumerate(holdings)
        )
        if there and self.fits(strategy, exchange):
            self.sharded.engine.rewire(exchange, strategy)
            return None
        return recut(self.sharded, strategy, exchange, holdings)

    def let_go(self) -> None:
        """Free the memory; nothing of this state will be used again."""
        self.inner.state.clear()
        self.outer.clear()
        if self._sharded is not None:
            for piece in self._sharded.pieces:
                piece.let_go()
            for flat in self._sharded.engine.flats:
                flat.let_go()
        for parameter in self.model.parameters():
            parameter.data = parameter.data.new_empty(0)

    def fits(self, strategy: Strategy, exchange: Exchange) -> bool:
        """Whether the shards that are there are cut as these ranks want them."""
        engine = self.sharded.engine
        same_place = engine.exchange.layout == exchange.layout and engine.exchange.rank == exchange.rank
        return engine.strategy == strategy and (strategy.name == "NNN" or same_place)

    def held(self) -> Held | None:
        """This worker's shards, for the coordinator; None where it holds all of the state."""
        if self._sharded is None or self._sharded.engine.strategy.states == "N":
            return None
        engine = self._sharded.engine
        synced = self.step if engine.synced else -1
        groups = engine.exchange.layout.groups
        return Held(engine.strategy.name, groups, engine.exchange.rank, self.round_id, self.ready, synced)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that makes up the state, by a name that does not depend on the worker.

        Parameters and buffers as `model.*`, optimizer state as `optim.*`; shards as pieces.
        """
        outer = {f"outer.{name}": moment for name, moment in self.outer.items()}
        return state_tensors(self.sharded) | outer

    def own_tensors(self) -> dict[str, Tensor]:
        """Those of them that this worker writes into a checkpoint."""
        return own_tensors(self.sharded)

    def set_rate(self, factor: float) -> float:
        """Scale every group's peak learning rate; returns the largest rate."""
        for group in self.inner.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return max(float(group["lr"]) for group in self.inner.param_groups)


def _without_state(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0)


def holdings_of(held: Sequence[Held | None], step: int) -> list[Holding | None]:
    """What the members of a round bring, as the optimizer understands it."""
    return [
        None
        if one is None
        else Holding(parse_strategy(one.strategy), Layout(one.groups), one.rank, one.synced == step)
        for one in held
    ]
