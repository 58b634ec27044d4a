"""Shapes and coefficients of the mixture-of-experts language model.

Source of the published shapes: Ling Lite and Ling Plus (arXiv 2503.05139 and their configurations).
The parameter formulas are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field, model_validator

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError

ComputeDtype = Literal["bf16", "fp32"]
InitRule = Literal["normal", "fan_in"]
MODEL_TYPE = "bailing_moe"
"""`model_type` in the config.json of models that `shoestring export` has written."""


class MoeConfig(Config):
    """Everything that fixes the function computed by `MoeLM` and its initial weights.

    Args:
        vocab_size: rows of the embedding and of the head (V).
        layers: decoder layers, each with attention and a mixture of experts (L).
        hidden: width of the residual stream (h).
        heads, kv_heads, head_dim: grouped-query attention; `heads` is a multiple of `kv_heads`.
        experts, top_k: routed experts of a layer (E) and how many a token uses.
        shared_experts: experts that every token uses; one MLP of width shared_experts * expert_width.
        expert_width: inner width of one expert (m).
        rope_theta, max_positions: rotary positions over the full head, halves rotated.
        norm_eps: added to the mean square in RMSNorm.
        norm_head: divide each column of the head by its norm over the vocabulary.
        init: "normal" draws every matrix with `init_std`; "fan_in" with 1 / sqrt(columns), but the
            embedding with 1.
        init_std: see `init`.
        embed_init_std: deviation of the embedding, if it shall not follow `init`.
        residual_init: factor on the start of the matrices that write into the residual stream.
        final_norm_init: start of the last norm's gain. With NormHead the head's columns have unit norm over
            the vocabulary, so this gain alone sets how sharp the first predictions can be.
        balance_coef, z_coef: coefficients of the balance and router z losses, summed over layers.
        routing_warmup_steps: W of the stochastic routing warm-up; 0 turns it off. Not published.
        routing_ema: share of the old value in the running mean and deviation of the router's logits.
        compute_dtype: type of activations and of the weights' working copies; masters stay fp32.
    """

    vocab_size: int = Field(ge=2)
    layers: int = Field(ge=1)
    hidden: int = Field(ge=8)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    shared_experts: int = Field(ge=0)
    expert_width: int = Field(ge=8)
    rope_theta: float = Field(default=600_000.0, gt=1.0)
    max_positions: int = Field(default=16_384, ge=1)
    norm_eps: float = Field(default=1e-6, gt=0.0)
    norm_head: bool = True
    init: InitRule = "normal"
    init_std: float = Field(default=0.006, gt=0.0)
    embed_init_std: float | None = None
    residual_init: float = Field(default=1.0, ge=0.0)
    final_norm_init: float = Field(default=1.0, gt=0.0)
    balance_coef: float = Field(default=0.015, ge=0.0)
    z_coef: float = Field(default=1e-4, ge=0.0)
    routing_warmup_steps: int = Field(default=0, ge=0)
    routing_ema: float = Field(default=0.9, ge=0.0, lt=1.0)
    compute_dtype: ComputeDtype = "bf16"

    @model_validator(mode="after")
    def _shapes_agree(self) -> MoeConfig:
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly",
                "make heads a multiple of kv_heads",
            )
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k is {self.top_k}, but there are only {self.experts} experts",
                "lower top_k or add experts",
            )
        return self

    @property
    def qkv_width(self) -> int:
        """Columns of query, key and value together."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def shared_width(self) -> int:
        """Inner width of the one MLP that stands for all shared experts."""
        return self.shared_experts * self.expert_width

    def parameter_count(self) -> int:
        """All parameters (ours).

        L (h nh hd + 2 h kv hd + nh hd h + 3 E h m + 3 s h m + h E + 2 h) + 2 V h + h.
        """
        tables = 2 * self.vocab_size * self.hidden
        return self._layer_parameters(self.experts) * self.layers + tables + self.hidden

    def active_parameter_count(self, *, embedding: bool = True, head: bool = True) -> int:
        """Parameters that one token meets: the same formula with top_k in place of the routed experts.

        Args:
            embedding: count the input embedding.
            head: count the output head.
        """
        tables = (int(embedding) + int(head)) * self.vocab_size * self.hidden
        return self._layer_parameters(self.top_k) * self.layers + tables + self.hidden

    def train_flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of forward and backward for one token (ours).

        6 for each active parameter that is multiplied (not the embedding, not the gains) plus causal
        attention: scores and values cost 2 * 2 * nh * hd * T / 2 forward, and twice that backward.

        Args:
            seq_len: tokens in a sequence (T).
        """
        gains = self.hidden * (2 * self.layers + 1)
        matrices = self.active_parameter_count(embedding=False) - gains
        attention = 6.0 * self.layers * self.heads * self.head_dim * seq_len
        return 6.0 * matrices + attention

    def _layer_parameters(self, experts: int) -> int:
        attention = self.hidden * self.qkv_width + self.heads * self.head_dim * self.hidden
        expert = 3 * self.hidden * self.expert_width
        router_and_gains = self.hidden * self.experts + 2 * self.hidden
        return attention + (experts + self.shared_experts) * expert + router_and_gains


LITE = MoeConfig(
    vocab_size=126_464, layers=28, hidden=2048, heads=16, kv_heads=4, head_dim=128,
    experts=64, top_k=6, shared_experts=2, expert_width=1408, norm_eps=1e-5,
)  # fmt: skip
PLUS = MoeConfig(
    vocab_size=126_464, layers=88, hidden=5376, heads=56, kv_heads=8, head_dim=96,
    experts=64, top_k=4, shared_experts=1, expert_width=3072,
)  # fmt: skip
TINY = MoeConfig(
    vocab_size=256, layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8,
    experts=4, top_k=2, shared_experts=1, expert_width=16, max_positions=512,
    init="fan_in", compute_dtype="fp32",
)  # fmt: skip

NAMED_CONFIGS: Mapping[str, MoeConfig] = MappingProxyType({"lite": LITE, "plus": PLUS, "tiny": TINY})
