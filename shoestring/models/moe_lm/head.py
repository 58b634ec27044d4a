"""The output head, normalised over the vocabulary (NormHead, arXiv 2503.05139)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shoestring.models.moe_lm.config import MoeConfig
from shoestring.models.moe_lm.kernels import HeadLossFn

_NORM_FLOOR = 1e-7


class NormHead(nn.Module):
    """logits = x (W / (|W| + 1e-7))^T with |W| [h] the norm of each hidden column over the vocabulary.

    The norm is detached: training moves the direction of a column as if the norm were a constant.
    With `norm_head` off it is a plain linear head.
    """

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.normalised = config.norm_head
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden))

    def effective_weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix [V, h] that is multiplied, divided in fp32 and then cast."""
        if not self.normalised:
            return self.weight.to(dtype)
        norm_h = torch.linalg.vector_norm(self.weight.detach().float(), dim=0) + _NORM_FLOOR
        divided: Tensor = self.weight / norm_h
        return divided.to(dtype)

    def loss_sum(self, x_Nh: Tensor, target_N: Tensor) -> Tensor:
        """Cross entropy summed over rows, in nats: x_Nh [N, h], target_N [N] int64 -> fp32 scalar."""
        loss: Tensor = HeadLossFn.apply(x_Nh, self.effective_weight(x_Nh.dtype), target_N)  # type: ignore[no-untyped-call]
        return loss

    def forward(self, x: Tensor) -> Tensor:
        """Logits in fp32: [..., h] -> [..., V]."""
        return F.linear(x, self.effective_weight(x.dtype)).float()
