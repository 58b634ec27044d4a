"""Router, dropless routed experts and shared experts of one layer (architecture: arXiv 2503.05139).

Everything that enters the loss is a sum over sequences or tokens, so any split of a batch gives the same
gradient. Shapes: B sequences, T tokens, N = B T, E experts, k experts a token, h hidden, m inner width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.models.moe_lm.config import MoeConfig
from shoestring.models.moe_lm.kernels import RoutedExpertsFn, SwigluMlpFn

_CPU_ROW_MULTIPLE = 64
_DEVICE_ROW_MULTIPLE = 16  # grouped products on accelerators want aligned groups


@dataclass(frozen=True)
class RoutingNoise:
    """What the stochastic routing warm-up mixes into one layer's logits: a s + (1 - a)(mu + sigma eps)."""

    keep: float
    mean_E: Tensor
    std_E: Tensor
    eps_BTE: Tensor


@dataclass(frozen=True)
class RouterOut:
    """What a router decided, and its sums over the tokens it saw."""

    weight_NK: Tensor
    expert_NK: Tensor
    balance_sum: Tensor
    z_sum: Tensor
    load_E: Tensor
    logit_sum_E: Tensor
    logit_sq_sum_E: Tensor


def sort_by_expert(expert_NK: Tensor, experts: int, multiple: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order the N k assignments by expert, each expert's rows filled up to a multiple.

    Without filling, nearly every product has a row count never met before, for which a CPU's matrix library
    generates code anew (that took a third of the step). Filling rows have weight 0 and change nothing.

    Args:
        expert_NK: the experts of each token, [N, k] int64.
        experts: E.
        multiple: each expert's rows are filled up to a multiple of this.

    Returns:
        (source, place, offsets): `source` [P] is the flat assignment in each row, N k in a filling row;
        `place` [N k] is the row of each assignment; `offsets` [E] int32 ends each expert's rows.
    """
    flat = expert_NK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    load = torch.bincount(flat, minlength=experts)
    filled = (load + multiple - 1) // multiple * multiple
    ends = filled.cumsum(0)
    shift = (ends - filled) - (load.cumsum(0) - load)
    rows = torch.arange(flat.numel(), device=flat.device) + shift.repeat_interleave(load)
    place = torch.empty_like(order)
    place[order] = rows
    source = torch.full((int(ends[-1]),), flat.numel(), dtype=order.dtype, device=flat.device)
    source[rows] = order
    return source, place, ends.to(torch.int32)


def _row_multiple(x_Nh: Tensor) -> int:
    """What each expert's rows are filled up to; a CPU decoding a few tokens has nothing to gain."""
    if x_Nh.device.type != "cpu":
        return _DEVICE_ROW_MULTIPLE
    return _CPU_ROW_MULTIPLE if x_Nh.shape[0] > _CPU_ROW_MULTIPLE else 1


class Router(nn.Module):
    """fp32 softmax over experts, top-k, renormalised; balance loss a sequence, z loss a token."""

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.top_k, self.experts = config.top_k, config.experts
        self.weight = nn.Parameter(torch.empty(config.experts, config.hidden))

    def forward(self, x_BTh: Tensor, noise: RoutingNoise | None) -> RouterOut:
        """x_BTh [B, T, h] -> weights and experts of each token.

        Balance loss of a sequence: T * E / (k T) * sum_e count_e * mean prob_e; being T times a mean over
        tokens, it adds up over sequences like the token losses do.
        """
        batch, length, _ = x_BTh.shape
        with torch.autocast(x_BTh.device.type, enabled=False):
            logit_BTE = F.linear(x_BTh.float(), self.weight)
        z_sum = torch.logsumexp(logit_BTE, dim=-1).square().sum()
        with torch.no_grad():
            logit_sum_E = logit_BTE.sum((0, 1))
            logit_sq_sum_E = logit_BTE.square().sum((0, 1))
        mixed_BTE = logit_BTE
        if noise is not None:
            drawn = noise.mean_E + noise.std_E * noise.eps_BTE
            mixed_BTE = noise.keep * logit_BTE + (1.0 - noise.keep) * drawn
        prob_BTE = mixed_BTE.softmax(-1)
        top_BTK, expert_BTK = prob_BTE.topk(self.top_k, dim=-1)
        weight_BTK = top_BTK / top_BTK.sum(-1, keepdim=True)
        count_BE = torch.zeros(batch, self.experts, device=x_BTh.device)
        ones = torch.ones((), device=x_BTh.device).expand(batch, length * self.top_k)
        count_BE.scatter_add_(1, expert_BTK.reshape(batch, -1), ones)
        scale = self.experts / (self.top_k * length)
        balance_sum = (count_BE * prob_BTE.sum(1)).sum() * scale
        return RouterOut(
            weight_NK=weight_BTK.view(-1, self.top_k),
            expert_NK=expert_BTK.view(-1, self.top_k),
            balance_sum=balance_sum,
            z_sum=z_sum,
            load_E=count_BE.sum(0),
            logit_sum_E=logit_sum_E,
            logit_sq_sum_E=logit_sq_sum_E,
        )


class MoeLayer(nn.Module):
    """Routed experts plus the shared ones.

    Weights: `gate_up` [E, 2, m, h] (gate, then up), `down` [E, h, m], `shared_gate_up` [2, s m, h],
    `shared_down` [h, s m]; the last two exist only if there are shared experts.
    """

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.router = Router(config)
        self.experts = config.experts
        self.gate_up = nn.Parameter(torch.empty(config.experts, 2, config.expert_width, config.hidden))
        self.down = nn.Parameter(torch.empty(config.experts, config.hidden, config.expert_width))
        self.has_shared = config.shared_experts > 0
        if self.has_shared:
            self.shared_gate_up = nn.Parameter(torch.empty(2, config.shared_width, config.hidden))
            self.shared_down = nn.Parameter(torch.empty(config.hidden, config.shared_width))

    def forward(self, x_BTh: Tensor, noise: RoutingNoise | None) -> tuple[Tensor, RouterOut]:
        """[B, T, h] -> ([B, T, h], routing)."""
        routing = self.router(x_BTh, noise)
        x_Nh = x_BTh.reshape(-1, x_BTh.shape[-1])
        route = sort_by_expert(routing.expert_NK, self.experts, _row_multiple(x_Nh))
        dtype = x_BTh.dtype
        w_in = self.gate_up.flatten(1, 2).to(dtype)
        out_Nh: Tensor = RoutedExpertsFn.apply(x_Nh, routing.weight_NK, w_in, self.down.to(dtype), route)  # type: ignore[no-untyped-call]
        if self.has_shared:
            shared_in = self.shared_gate_up.flatten(0, 1).to(dtype)
            out_Nh = out_Nh + SwigluMlpFn.apply(x_Nh, shared_in, self.shared_down.to(dtype))  # type: ignore[no-untyped-call]
        return out_Nh.view_as(x_BTh), routing
