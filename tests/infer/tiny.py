"""A mixture-of-experts model that is small, and whose random weights say something."""

from __future__ import annotations

from typing import Any

from shoestring.models.moe_lm.config import MoeConfig


def tiny_moe(vocab_size: int, max_positions: int, **more: Any) -> MoeConfig:
    """Two layers of width 32, computed in fp32."""
    return MoeConfig(
        vocab_size=vocab_size,
        layers=2,
        hidden=32,
        heads=4,
        kv_heads=2,
        head_dim=8,
        experts=4,
        top_k=2,
        shared_experts=1,
        expert_width=16,
        max_positions=max_positions,
        init="fan_in",
        compute_dtype="fp32",
        **more,
    )
