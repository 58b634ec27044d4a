"""Muon for matrices and AdamW for the rest, as one optimizer.

Muon (K. Jordan et al., 2024): momentum, then the nearest semi-orthogonal matrix by Newton-Schulz
iterations in place of the raw update. AdamW: arXiv 1711.05101. The grouping, and the division of the
Newton-Schulz work over workers, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from shoestring.base.config import Config
from shoestring.parallel.paro.engine import Engine
from shoestring.parallel.paro.flat import Piece
from shoestring.parallel.paro.matrices import Matrices

# Quintic coefficients of the published Muon: steep at zero, singular values end within about 0.7 .. 1.2.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int) -> Tensor:
    """Push all singular values of each matrix towards 1: [n, r, c] with r <= c -> the same shape.

    Runs in the dtype of `matrices`; bf16 is enough, as only directions matter.

    Args:
        matrices: a batch of matrices.
        steps: Newton-Schulz iterations.
    """
    a, b, c = _QUINTIC
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True, dtype=torch.float32)
    x: Tensor = matrices / (norm + 1e-7).to(matrices.dtype)
    for _ in range(steps):
        gram = torch.bmm(x, x.transpose(1, 2))
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x


class OptimizerConfig(Config):
    """Peak learning rates by kind of parameter, and what the two rules need.

    Attributes:
        kind: rule for the matrices inside layers; embedding, head, gains and routers always get AdamW.
        matrix_lr: of the matrices; Muon's own scale with `muon` (0.02 is usual), Adam's with `adamw`.
        embed_lr, head_lr, gain_lr, router_lr: of the others.
        weight_decay: decoupled, on the matrices only.
        momentum: of Muon (Nesterov).
        beta1, beta2, eps: of AdamW.
        ns_steps: Newton-Schulz iterations.
    """

    kind: Literal["muon", "adamw"] = "muon"
    matrix_lr: float = Field(default=0.02, gt=0.0)
    embed_lr: float = Field(default=0.03, gt=0.0)
    head_lr: float = Field(default=0.03, gt=0.0)
    gain_lr: float = Field(default=0.01, gt=0.0)
    router_lr: float = Field(default=0.003, gt=0.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    momentum: float = Field(default=0.95, ge=0.0, lt=1.0)
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    beta2: float = Field(default=0.95, ge=0.0, lt=1.0)
    eps: float = Field(default=1e-10, gt=0.0)
    ns_steps: int = Field(default=5, ge=1)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> MuonAdamW:
    """The optimizer of a language model: one group for each kind of parameter."""
    rates = {
        "matrix": config.matrix_lr, "embed": config.embed_lr, "head": config.head_lr,
        "gain": config.gain_lr, "router": config.router_lr,
    }  # fmt: skip
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        members[_kind(name, parameter)].append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": members[name],
            "lr": rate,
            "rule": config.kind if name == "matrix" else "adamw",
            "weight_decay": config.weight_decay if name == "matrix" else 0.0,
        }
        for name, rate in rates.items()
        if members[name]
    ]
    return MuonAdamW(
        groups, momentum=config.momentum, betas=(config.beta1, config.beta2), eps=config.eps,
        ns_steps=config.ns_steps,
    )  # fmt: skip


def _kind(name: str, parameter: Tensor) -> str:
    if parameter.dim() == 1:
        return "gain"
    if name == "embed":
        return "embed"
    if name.startswith("head"):
        return "head"
    return "router" if ".router." in name else "matrix"


@dataclass(frozen=True)
class Cut:
    """Muon's pieces with their groups, and how matrices are put together from them."""

    pieces: list[tuple[dict[str, Any], Piece]]
    matrices: Matrices


class MuonAdamW(torch.optim.Optimizer):
    """One step for all groups; a group's `rule` says which.

    A Muon tensor [..., r, c] is a batch of matrices. Its update is scaled by sqrt(max(1, r / c)).
    Where state and parameters are whole on every worker, `prepare` lets them share the one expensive part of
    a step. Where they are cut, each matrix is put together at one worker for it (`take_pieces`).

    Args:
        params: groups with a `rule`, "muon" or "adamw".
        momentum: of Muon (Nesterov).
        betas, eps: of AdamW.
        ns_steps: Newton-Schulz iterations.
        dtype: of the Newton-Schulz products.
    """

    def __init__(
        self, params: Iterable[dict[str, Any]], *, momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-10, ns_steps: int = 5,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:  # fmt: skip
        super().__init__(params, {"momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._ns_steps = ns_steps
        self._dtype = dtype
        self._prepared: list[Tensor] | None = None
        self._cut: Cut | None = None
        self._ready: dict[str, Tensor] | None = None

    def take_pieces(self, pieces: Sequence[Piece], engine: Engine) -> None:
        """From here on the groups hold these pieces; called by `paro.shard` and after every new cut."""
        self._ready = self._prepared = None
        self._cut = None
        if all(piece.whole for piece in pieces):
            return
        by_id = {id(piece.master): piece for piece in pieces}
        mine = [
            (group, by_id[id(parameter)])
            for group in self.param_groups
            if group["rule"] == "muon"
            for parameter in group["params"]
        ]
        self._cut = Cut(mine, Matrices(engine, [piece.name for _, piece in mine]))

    @torch.no_grad()
    def prepare(
        self, rank: int = 0, world: int = 1, exchange: Callable[[Tensor], object] | None = None
    ) -> None:
        """Orthogonalise the coming updates; with several workers, each its share of the matrices.

        Changes neither parameters nor state, so a failing exchange leaves a whole, unchanged optimizer.

        Args:
            rank, world: this worker's place among those that hold the same gradients.
            exchange: sums a flat tensor over the workers in place; called once by each. Not used where state
                is
                cut: then matrices travel by themselves.

        Raises:
            PeerLostError: a worker is gone.
        """
        if self._cut is not None:
            self._ready = self._prepare_cut(self._cut)
            return
        batches = [self._look_ahead(members, group) for group, members in self._matrices()]
        if exchange is None or world == 1 or not batches:
            self._prepared = [self._orthogonalise(batch) for batch in batches]
            return
        sizes = [batch.numel() for batch in batches]
        flat = torch.zeros(sum(sizes), dtype=self._dtype, device=batches[0].device)
        parts = flat.split(sizes)
        shared = [part.view_as(batch) for part, batch in zip(parts, batches, strict=True)]
        for out, batch in zip(shared, batches, strict=True):
            first, last = len(batch) * rank // world, len(batch) * (rank + 1) // world
            if last > first:
                out[first:last] = self._orthogonalise(batch[first:last])
        exchange(flat)
        self._prepared = shared

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, with what `prepare` made if it was called."""
        if self._cut is not None:
            self._step_cut(self._cut)
            return
        if self._prepared is None:
            self.prepare()
        updates, self._prepared = self._prepared or [], None
        for (group, members), update in zip(self._matrices(), updates, strict=True):
            self._apply_muon(members, update, group)
        for group in self.param_groups:
            if group["rule"] == "adamw":
                self._adamw([p for p in group["params"] if p.grad is not None], group)

    def _prepare_cut(self, cut: Cut) -> dict[str, Tensor]:
        """Look-ahead of each piece, matrices to their owners, orthogonalised by shape, and back."""
        held: dict[str, tuple[Piece, Tensor]] = {}
        for group, piece in cut.pieces:
            master, keep = piece.master, group["momentum"]
            if master.grad is None:
                held[piece.name] = (
                    piece,
                    torch.zeros(master.numel(), dtype=self._dtype, device=master.device),
                )
                continue
            ahead = master.grad * (1.0 - keep * keep)
            if master in self.state:
                ahead.add_(self.state[master]["first"], alpha=keep * keep)
            held[piece.name] = (piece, ahead.reshape(-1).to(self._dtype))
        matrices = cut.matrices.bring(held, self._dtype)
        by_shape: dict[torch.Size, list[int]] = {}
        for number, matrix in enumerate(matrices):
            by_shape.setdefault(matrix.shape, []).append(number)
        for numbers in by_shape.values():
            made = self._orthogonalise(torch.stack([matrices[number] for number in numbers]))
            for number, matrix in zip(numbers, made, strict=True):
                matrices[number] = matrix.contiguous()
        cut.matrices.give_back(matrices, held)
        return {name: values for name, (_, values) in held.items()}

    def _step_cut(self, cut: Cut) -> None:
        ready, self._ready = self._ready, None
        for group, piece in cut.pieces:
            master = piece.master
            if master.grad is None or not master.numel():
                continue
            if ready is None and bool(master.grad.any()):
                raise RuntimeError("`prepare` comes before `step` where matrices are cut")
            state = self.state[master]
            if not state:
                state["first"] = torch.zeros_like(master)
            state["first"].lerp_(master.grad, 1.0 - group["momentum"])
            master.mul_(1.0 - group["lr"] * group["weight_decay"])
            rows, columns = piece.shape[-2:]
            rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
            if ready is not None:
                master.add_(ready[piece.name].view_as(master), alpha=-rate)
        for group in self.param_groups:
            if group["rule"] == "adamw":
                self._adamw([p for p in group["params"] if p.grad is not None], group)

    def _matrices(self) -> list[tuple[dict[str, Any], list[Tensor]]]:
        """Muon's parameters with a gradient, those of one shape together."""
        found: list[tuple[dict[str, Any], list[Tensor]]] = []
        for group in self.param_groups:
            if group["rule"] != "muon":
                continue
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault((parameter.shape[-2], parameter.shape[-1]), []).append(parameter)
            found.extend((group, members) for members in by_shape.values())
        return found

    def _look_ahead(self, members: list[Tensor], group: dict[str, Any]) -> Tensor:
        """Nesterov's mix of gradient and running mean as the step will see it: [n, r, c], working dtype."""
        keep = group["momentum"]
        parts = []
        for parameter in members:
            assert parameter.grad is not None
            ahead = parameter.grad * (1.0 - keep * keep)
            if self.state[parameter]:
                ahead.add_(self.state[parameter]["first"], alpha=keep * keep)
            parts.append(ahead.view(-1, *parameter.shape[-2:]).to(self._dtype))
        return torch.cat(parts)

    def _orthogonalise(self, batch: Tensor) -> Tensor:
        if batch.shape[1] <= batch.shape[2]:
            return orthogonalise(batch, self._ns_steps)
        return orthogonalise(batch.transpose(1, 2).contiguous(), self._ns_steps).transpose(1, 2)

    def _apply_muon(self, members: list[Tensor], update: Tensor, group: dict[str, Any]) -> None:
        rows, columns = update.shape[-2:]
        rate = group["lr"] * math.sqrt(max(1.0, rows / columns))
        offset = 0
        for parameter in members:
            state = self.state[parameter]
            if not state:
                state["first"] = torch.zeros_like(parameter)
            assert parameter.grad is not None
            state["first"].lerp_(parameter.grad, 1.0 - group["momentum"])
            count = parameter.numel() // (rows * columns)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(update[offset : offset + count].reshape(parameter.shape), alpha=-rate)
            offset += count

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in params:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["first"] = torch.zeros_like(parameter)
                state["second"] = torch.zeros_like(parameter)
            assert parameter.grad is not None
            state["step"] += 1
            count = float(state["step"])
            state["first"].lerp_(parameter.grad, 1.0 - beta1)
            state["second"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1.0 - beta2)
            unbias = math.sqrt(1.0 - beta2**count)
            denominator = state["second"].sqrt().add_(group["eps"] * unbias)
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            rate = group["lr"] * unbias / (1.0 - beta1**count)
            parameter.addcdiv_(state["first"], denominator, value=-rate)
