"""Embedding tables whose rows lie with parameter servers: a worker fetches the rows that its samples need and
brings back gradients of those (source: ours, after Li et al., OSDI 2014).

A table is the weight of an `nn.Embedding` or `nn.EmbeddingBag` with `sparse=True`. Its rows are divided among
the servers in equal runs; no worker trains with all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from shoestring.base.errors import ConfigError
from shoestring.parallel.paro.optimizer import without_meta
from shoestring.parallel.paro.pieces import PieceTensor
from shoestring.train.task import Task

ROW_BY_ROW = frozenset({"SGD", "Adagrad"})
"""Optimizers of torch that update the rows which have a gradient, and no others."""

Hook = Callable[
    [nn.Module, tuple[Tensor, ...], dict[str, object]], tuple[tuple[Tensor, ...], dict[str, object]]
]
Fetch = Callable[[int, Tensor], Tensor]
"""(table, rows int64 [n], ascending) -> their values [n, dim]."""


@dataclass(frozen=True)
class Rows:
    """Gradients of some rows: `ids` int64 [n], ascending, no two equal; `values` fp32 [n, dim]."""

    ids: Tensor
    values: Tensor

    @property
    def square(self) -> float:
        """Squared norm."""
        return float(torch.linalg.vector_norm(self.values).double().square())

    def between(self, first: int, stop: int) -> Rows:
        """Those of rows [first, stop)."""
        low, high = torch.searchsorted(self.ids, torch.tensor([first, stop])).tolist()
        return Rows(self.ids[low:high], self.values[low:high])


def merged(parts: Sequence[tuple[Tensor, Tensor]], dim: int) -> Rows:
    """The sum of gradients of rows that may occur more than once: (ids [n], values [n, dim]) each."""
    if not parts:
        return Rows(torch.empty(0, dtype=torch.int64), torch.empty(0, dim))
    ids, places = torch.unique(torch.cat([part for part, _ in parts]), return_inverse=True)
    values = torch.zeros(len(ids), dim).index_add_(0, places, torch.cat([part for _, part in parts]))
    return Rows(ids, values)


def table_modules(model: nn.Module) -> dict[str, nn.Embedding | nn.EmbeddingBag]:
    """The modules whose weights are tables, by the weight's name.

    Raises:
        ConfigError: one cannot be divided.
    """
    found: dict[str, nn.Embedding | nn.EmbeddingBag] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            name = f"{prefix}.weight" if prefix else "weight"
            if module.max_norm is not None:
                raise ConfigError(
                    f"{name} has max_norm, which changes rows while they are read",
                    "leave max_norm out, or sparse=True",
                )
            found[name] = module
    return found


@dataclass(frozen=True)
class Taken:
    """A whole table that was taken out of a model: its values, its optimizer's options and first state."""

    values: Tensor
    options: dict[str, object]
    state: dict[str, object]


def take_out(
    modules: dict[str, nn.Embedding | nn.EmbeddingBag], inner: torch.optim.Optimizer
) -> dict[str, Taken]:
    """Take tables out of their modules and their optimizer, by name.

    Raises:
        ConfigError: no optimizer updates one of them.
    """
    found: dict[str, Taken] = {}
    for name, module in modules.items():
        weight = module._parameters.pop("weight")
        assert weight is not None
        for group in inner.param_groups:
            if any(one is weight for one in group["params"]):
                group["params"] = [one for one in group["params"] if one is not weight]
                options = {key: value for key, value in group.items() if key != "params"}
                state = inner.state.pop(weight) if weight in inner.state else {}
                found[name] = Taken(weight.detach(), options, dict(state))
        if name not in found:
            raise ConfigError(
                f"{name} is a table that no optimizer updates",
                "freeze it with sparse=False, or give it to one",
            )
        module.weight = weight.new_empty((0, *weight.shape[1:]), device="cpu").detach()  # of no memory
    return found


def with_all_parts(model: nn.Module, task: Task) -> nn.Module:
    """The same model with its tables, for a task that brings initial values for all of one; without values
    where this one's are on the meta device."""
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    return task.build(torch.device("meta")) if on_meta else model


class ServedTable:
    """One server's rows of a table.

    Args:
        taken: of which only this server's rows are kept.
        kind: of optimizer.

    Attributes:
        first, stop: its rows.

    Raises:
        ConfigError: that kind of optimizer does not update single rows.
    """

    def __init__(
        self,
        name: str,
        taken: Taken,
        kind: type[torch.optim.Optimizer],
        rank: int,
        size: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        if kind.__name__ not in ROW_BY_ROW:
            raise ConfigError(
                f"{kind.__name__} cannot update single rows of {name}, which has sparse=True",
                f"use one of {', '.join(sorted(ROW_BY_ROW))}, or leave sparse=True out",
            )
        for setting in ("momentum", "weight_decay", "lr_decay"):
            if taken.options.get(setting):
                raise ConfigError(
                    f"{setting} changes all rows of {name} in each update, and only some are there",
                    f"set {setting}=0, or leave sparse=True out",
                )
        self.name, self.shape = name, taken.values.shape
        self.first, self.stop = rows_of(self.shape[0], rank, size)
        self.values = nn.Parameter(taken.values[self.first : self.stop].to(device, copy=True))
        self._optimizer = kind([{"params": [self.values], **taken.options}])  # type: ignore[call-arg]
        self._make_state(taken)

    @property
    def dim(self) -> int:
        """Elements of a row."""
        return self.shape[1]

    @torch.no_grad()
    def rows(self, ids: Tensor) -> Tensor:
        """[n] -> [n, dim], on the CPU."""
        return self.values[(ids - self.first).to(self.values.device)].float().cpu()

    def set_rate(self, factor: float) -> None:
        """Scale the peak learning rate."""
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor

    @torch.no_grad()
    def update(self, gradient: Rows, scale: float) -> None:
        """One update of the rows that have a gradient."""
        if not len(gradient.ids):
            return
        device = self.values.device
        self.values.grad = torch.sparse_coo_tensor(
            (gradient.ids - self.first)[None].to(device),
            (gradient.values * scale).to(device, self.values.dtype),
            tuple(self.values.shape),
            is_coalesced=True,
            check_invariants=False,
        )
        self._optimizer.step()
        self.values.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """For checkpoints: values and optimizer state, as pieces of the whole table."""
        found = {f"model.{self.name}": self._piece(self.values.data)}
        for key, value in self._optimizer.state[self.values].items():
            if isinstance(value, Tensor):
                whole = value.shape == self.values.shape and value.dim() == 2
                found[f"optim.state.{self.name}.{key}"] = self._piece(value) if whole else value
        return found

    def own_tensors(self) -> dict[str, Tensor]:
        """Those of them that this server writes: what is not by rows, the first one does."""
        return {
            name: tensor
            for name, tensor in self.tensors().items()
            if (tensor.local.numel() if isinstance(tensor, PieceTensor) else self.first == 0)
        }

    def _piece(self, local: Tensor) -> Tensor:
        if local.shape == self.shape:
            return local
        return PieceTensor(local.reshape(-1), self.shape, self.first * self.dim)

    @torch.no_grad()
    def _make_state(self, taken: Taken) -> None:
        """What is saved has to be there to be filled; a step without rows makes it and changes nothing."""
        self.values.grad = torch.sparse_coo_tensor(
            torch.empty(1, 0, dtype=torch.int64), torch.empty(0, self.dim), tuple(self.values.shape)
        ).to(self.values.device)
        self._optimizer.step()
        self.values.grad = None
        state = self._optimizer.state[self.values]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == 0:
                value.zero_()
            elif isinstance(first := taken.state.get(key), Tensor) and first.shape == self.shape:
                value.copy_(without_meta(first, taken.options, value.device)[self.first : self.stop])


def rows_of(rows: int, rank: int, size: int) -> tuple[int, int]:
    """The rows [first, stop) of a server."""
    each = -(-rows // size)
    return min(rows, rank * each), min(rows, (rank + 1) * each)


class BorrowedTables:
    """A worker's side: rows come when a module is called, gradients are gathered after backward passes.

    Args:
        modules: taken out of the model's parameters by `take_out`.
        fetch: from the servers.
        dtype: that rows are computed with; None: what the module holds.
    """

    def __init__(
        self,
        modules: dict[str, nn.Embedding | nn.EmbeddingBag],
        device: torch.device,
        fetch: Fetch,
        dtype: torch.dtype | None,
    ) -> None:
        self.names = tuple(modules)
        self._device = device
        self._fetch = fetch
        self._used: list[tuple[int, Tensor, Tensor]] = []  # (table, ids, leaf whose gradient counts)
        self.dims = [module.embedding_dim for module in modules.values()]
        for number, module in enumerate(modules.values()):
            module.sparse = False  # of the few rows that are here all have a gradient
            padding = module.padding_idx
            as_what = dtype or module.weight.dtype
            module.register_forward_pre_hook(self._hook(number, padding, as_what), with_kwargs=True)

    def forget(self) -> None:
        """A new step begins."""
        self._used.clear()

    def gradients(self) -> list[Rows]:
        """By table, of all passes since `forget`."""
        parts: list[list[tuple[Tensor, Tensor]]] = [[] for _ in self.names]
        for number, ids, leaf in self._used:
            if leaf.grad is not None:
                parts[number].append((ids, leaf.grad.detach().float().cpu()))
        return [merged(one, dim) for one, dim in zip(parts, self.dims, strict=True)]

    def _hook(self, number: int, padding: int | None, dtype: torch.dtype) -> Hook:
        def before(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]
        ) -> tuple[tuple[Tensor, ...], dict[str, object]]:
            wanted = args[0] if args else kwargs.pop("input")
            assert isinstance(wanted, Tensor)
            ids, places = torch.unique(wanted.cpu(), return_inverse=True)
            leaf = self._fetch(number, ids).to(self._device, dtype).requires_grad_(torch.is_grad_enabled())
            if leaf.requires_grad:
                self._used.append((number, ids, leaf))
            module.weight = leaf
            module.padding_idx = _place(ids, padding)  # type: ignore[assignment]
            return (places.to(wanted.device, wanted.dtype), *args[1:]), kwargs

        return cast(Hook, torch.compiler.disable(before))  # it talks to others: nothing to be compiled


def _place(ids: Tensor, row: int | None) -> int | None:
    found = (ids == row).nonzero().flatten().tolist() if row is not None else []
    return int(found[0]) if found else None


def split_rows(parts: Iterable[Rows], ranges: Sequence[tuple[int, int]]) -> list[Rows]:
    """Of each table's gradients those in a server's range of its rows."""
    return [part.between(first, stop) for part, (first, stop) in zip(parts, ranges, strict=True)]
