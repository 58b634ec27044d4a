"""How a language model is run over tokens of many sequences at once, laid one after the other without padding
(source: ours).

The model brings projections and positions; whoever holds the keys and values brings attention. Shapes: N
tokens of all sequences together, H heads, G key-value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Attend(Protocol):
    """Causal attention of new tokens to themselves and to all before them in their sequence."""

    def __call__(self, layer: int, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, scale: float) -> Tensor:
        """Keep the new keys and values; rotated queries [N, H, D] -> [N, H, D of the values]."""
        ...


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a token: G keys of width `key_dim` and G values of width `value_dim`."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class RaggedShape:
    """What a cache for a model has to hold.

    Attributes:
        layers: one entry a layer.
        positions: the longest sequence.
        vocab_size: token ids are below it.
        dtype, device: of keys and values.
    """

    layers: tuple[LayerShape, ...]
    positions: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Of the keys and values of one token."""
        numbers = sum(one.kv_heads * (one.key_dim + one.value_dim) for one in self.layers)
        return numbers * self.dtype.itemsize


class Ragged(Protocol):
    """A language model that can be run so."""

    @property
    def shape(self) -> RaggedShape:
        """What a cache for it has to hold."""
        ...

    def ragged(self, tokens_N: Tensor, positions_N: Tensor, last_B: Tensor, attend: Attend) -> Tensor:
        """Run new tokens, int64 [N], at their positions in their sequences; fp32 logits [B, V] of the tokens
        at the places `last_B`."""
        ...
