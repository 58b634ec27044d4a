"""Which compute dtype is the quicker one on a device, found by measuring (source: ours)."""

from __future__ import annotations

import torch

from shoestring.base.clock import Clock, SystemClock
from shoestring.models.moe_lm.config import ComputeDtype
from shoestring.models.moe_lm.model import DTYPES

_SIZE = 1024
_REPEATS = 5


def matmul_rates(device: torch.device, clock: Clock | None = None) -> dict[ComputeDtype, float]:
    """Floating-point operations a second of a square product, best of a few, for each compute dtype.

    Takes about 0.2 s on two CPU cores; uses as many threads as torch is set to.
    """
    ticking = clock or SystemClock()
    return {name: _rate(dtype, device, ticking) for name, dtype in DTYPES.items()}


def quickest_dtype(device: torch.device, clock: Clock | None = None) -> ComputeDtype:
    """`bf16` where its products are at least as fast as fp32's (it halves memory too), else `fp32`."""
    rates = matmul_rates(device, clock)
    return "bf16" if rates["bf16"] >= rates["fp32"] else "fp32"


def _rate(dtype: torch.dtype, device: torch.device, clock: Clock) -> float:
    left, right = (torch.randn(_SIZE, _SIZE, device=device).to(dtype) for _ in range(2))
    spans_s = []
    for _ in range(_REPEATS + 1):
        began_s = clock.now()
        product = left @ right
        float(product[0, 0])  # waits for the device
        spans_s.append(clock.now() - began_s)
    return 2.0 * _SIZE**3 / max(1e-9, min(spans_s[1:]))
