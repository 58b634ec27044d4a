"""Fused pieces with hand-written backward passes: fewer passes over memory than autograd would make.

Each is checked against plain autograd in tests/models. Source: ours. Shapes: N rows (tokens), d width,
E experts, m inner width of an expert, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Route = tuple[Tensor, Tensor, Tensor]

_PARTIAL_SUMS = 16
_HEAD_CHUNK_ELEMENTS = 1 << 21  # logits of a chunk stay near the cache; found by measuring


class RmsNormFn(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps) * gain, mean square in fp32."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, gain_D: Tensor, eps: float) -> Tensor:
        """x_ND [N, d], gain_D [d] of the same dtype -> [N, d]."""
        size_N1 = torch.linalg.vector_norm(x_ND, dim=-1, keepdim=True, dtype=torch.float32)
        rstd_N1 = size_N1.square_().div_(x_ND.shape[-1]).add_(eps).rsqrt_().to(x_ND.dtype)
        unit_ND = x_ND * rstd_N1
        ctx.save_for_backward(unit_ND, rstd_N1, gain_D)
        scaled: Tensor = unit_ND * gain_D
        return scaled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and gain."""
        unit_ND, rstd_N1, gain_D = ctx.saved_tensors
        along_ND = dy_ND * unit_ND
        dgain_D = along_ND.sum(0, dtype=torch.float32).to(gain_D.dtype)
        mean_N1 = torch.mv(along_ND, gain_D).div_(unit_ND.shape[-1]).unsqueeze_(1)
        dx_ND = (dy_ND * gain_D).addcmul_(unit_ND, mean_N1, value=-1.0).mul_(rstd_N1)
        return dx_ND, dgain_D, None


def _swiglu_backward(gate: Tensor, up: Tensor, silu: Tensor, dact: Tensor) -> Tensor:
    """Gradient of [gate | up] side by side, given that of silu(gate) * up; `silu` is silu(gate)."""
    width = gate.shape[-1]
    dboth = torch.empty(*gate.shape[:-1], 2 * width, dtype=gate.dtype, device=gate.device)
    torch.mul(dact, silu, out=dboth[..., width:])
    dboth[..., :width] = torch.ops.aten.silu_backward(dact * up, gate)
    return dboth


class SwigluMlpFn(torch.autograd.Function):
    """One dense MLP: (silu(x Wg) * (x Wu)) Wd."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        """x_ND [N, d], w_in [2m, d] (gate rows first), w_out [d, m] -> [N, d]."""
        both = x_ND @ w_in.t()
        gate, up = both.chunk(2, dim=-1)
        silu = F.silu(gate)
        act = silu * up
        ctx.save_for_backward(x_ND, w_in, w_out, both, silu, act)
        return act @ w_out.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, w_in, w_out."""
        x_ND, w_in, w_out, both, silu, act = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        dboth = _swiglu_backward(gate, up, silu, dy_ND @ w_out)
        return dboth @ w_in, dboth.t() @ x_ND, dy_ND.t() @ act


class RoutedExpertsFn(torch.autograd.Function):
    """Sum over a token's experts of weight * expert(x), dropless, by grouped matrix multiplication.

    Rows are sorted by expert; empty experts cost nothing. The routing weight is folded into the inner
    activation, which is narrower than the output.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: Tensor, weight_NK: Tensor, w_in: Tensor, w_out: Tensor, route: Route
    ) -> Tensor:
        """x_ND [N, d], weight_NK [N, k], w_in [E, 2m, d], w_out [E, d, m]; route: `moe.sort_by_expert`."""
        source, place, offsets = route
        rows, top_k = weight_NK.shape
        token = source.div(top_k, rounding_mode="floor").clamp_(max=rows - 1)
        xs = x_ND.index_select(0, token)
        both = F.grouped_mm(xs, w_in.transpose(1, 2), offs=offsets)
        gate, up = both.chunk(2, dim=-1)
        silu = F.silu(gate)
        act = silu * up
        flat_weight = torch.cat((weight_NK.reshape(-1), weight_NK.new_zeros(1)))
        weight = flat_weight.index_select(0, source).to(x_ND.dtype).unsqueeze(1)
        weighted = act * weight
        ys = F.grouped_mm(weighted, w_out.transpose(1, 2), offs=offsets)
        ctx.save_for_backward(xs, both, silu, act, weighted, weight, w_in, w_out, token, place, offsets)
        return _sum_experts(ys, place, top_k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
        """Gradients of x, weight, w_in, w_out."""
        xs, both, silu, act, weighted, weight, w_in, w_out, token, place, offsets = ctx.saved_tensors
        top_k = place.numel() // dy_ND.shape[0]
        dys = dy_ND.index_select(0, token)
        dweighted = F.grouped_mm(dys, w_out, offs=offsets)
        dw_out = F.grouped_mm(dys.t(), weighted, offs=offsets)
        dweight = (dweighted * act).sum(-1, dtype=torch.float32)
        gate, up = both.chunk(2, dim=-1)
        dboth = _swiglu_backward(gate, up, silu, dweighted.mul_(weight))
        dw_in = F.grouped_mm(dboth.t(), xs, offs=offsets)
        dx_ND = _sum_experts(F.grouped_mm(dboth, w_in, offs=offsets), place, top_k)
        return dx_ND, dweight.index_select(0, place).view(-1, top_k), dw_in, dw_out, None


def _sum_experts(rows: Tensor, place: Tensor, top_k: int) -> Tensor:
    """Gather each token's k rows and add them: [P, d], [N k] -> [N, d]."""
    picked = rows.index_select(0, place).view(-1, top_k, rows.shape[-1])
    total = picked[:, 0]
    for index in range(1, top_k):
        total = total + picked[:, index]
    return total


def _row_sums(z: Tensor) -> Tensor:
    """Row sums in fp32, [M, V] -> [M, 1]; partial sums in z's own type spare the fp32 copy of z."""
    width = max(1, -(-z.shape[1] // _PARTIAL_SUMS))
    return torch.stack([part.sum(1) for part in z.split(width, dim=1)]).float().sum(0).unsqueeze(1)


class HeadLossFn(torch.autograd.Function):
    """Summed cross entropy of a linear head, in chunks of rows; logits are never kept.

    The gradient is made together with the loss, so each chunk of logits is computed once.
    """

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, w_VD: Tensor, target_N: Tensor) -> Tensor:
        """x_ND [N, d], w_VD [V, d], target_N [N] int64 -> loss summed over rows (nats), fp32 scalar."""
        rows = max(1, _HEAD_CHUNK_ELEMENTS // w_VD.shape[0])
        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        dx_ND = torch.empty_like(x_ND) if needs_grad else None
        dw_VD = torch.zeros(w_VD.shape, dtype=torch.float32, device=w_VD.device) if needs_grad else None
        loss = torch.zeros((), dtype=torch.float32, device=x_ND.device)
        for start in range(0, x_ND.shape[0], rows):
            x, target = x_ND[start : start + rows], target_N[start : start + rows, None]
            z = x @ w_VD.t()
            z.sub_(z.amax(1, keepdim=True))
            picked = z.gather(1, target).float()
            z.exp_()
            total = _row_sums(z)
            loss += (total.log() - picked).sum()
            if dx_ND is not None and dw_VD is not None:
                # probabilities = exp(z) / total, less one at the target: dividing the narrow side and taking
                # the target's row apart saves two passes over the logits.
                share = total.reciprocal().to(x.dtype)
                torch.mm(z, w_VD, out=dx_ND[start : start + rows])
                dx_ND[start : start + rows].mul_(share).sub_(w_VD.index_select(0, target.squeeze(1)))
                dw_VD += z.t() @ (x * share)
                dw_VD.index_add_(0, target.squeeze(1), x.float(), alpha=-1.0)
        if dx_ND is not None and dw_VD is not None:
            ctx.save_for_backward(dx_ND, dw_VD)
            ctx.w_dtype = w_VD.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and w, scaled by the loss's own gradient."""
        dx_ND, dw_VD = ctx.saved_tensors
        return dx_ND * dloss.to(dx_ND.dtype), (dw_VD * dloss).to(ctx.w_dtype), None
