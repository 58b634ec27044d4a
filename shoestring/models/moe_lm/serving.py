"""The language model made ready for inference alone: weights cast, joined, normalised once (source: ours)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.models.moe_lm.attention import rope_at, rotate
from shoestring.models.moe_lm.kernels import RmsNormFn
from shoestring.models.moe_lm.model import Block, MoeLM, RmsNorm
from shoestring.models.ragged import Attend, LayerShape, RaggedShape


class ServedMoe:
    """A `MoeLM` that is run over ragged batches; see `shoestring.models.ragged.Ragged`.

    Args:
        model: it is taken over and cannot be trained any more: its matrices are cast to the compute dtype,
            so that no step casts them again. The router stays in fp32.
    """

    def __init__(self, model: MoeLM) -> None:
        config = model.config
        dtype = model.compute_dtype
        self._head = model.head.effective_weight(dtype).detach()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(False)
            if "router" not in name:
                parameter.data = parameter.data.to(dtype)
        self._model = model
        self._blocks = [block for block in model.layers if isinstance(block, Block)]
        self._qkv = [
            torch.cat((block.attention.query, block.attention.key, block.attention.value))
            for block in self._blocks
        ]
        layer = LayerShape(config.kv_heads, config.head_dim, config.head_dim)
        self._shape = RaggedShape(
            layers=(layer,) * config.layers,
            positions=config.max_positions,
            vocab_size=config.vocab_size,
            dtype=dtype,
            device=model.embed.device,
        )

    @property
    def shape(self) -> RaggedShape:
        """What a cache for it has to hold."""
        return self._shape

    @torch.no_grad()
    def ragged(self, tokens_N: Tensor, positions_N: Tensor, last_B: Tensor, attend: Attend) -> Tensor:
        """Tokens of many sequences, one sequence after the other; fp32 logits [B, V] of those at `last_B`."""
        config = self._model.config
        heads, kv_heads, dim = config.heads, config.kv_heads, config.head_dim
        x_Nh = F.embedding(tokens_N, self._model.embed)
        cos, sin = (one[:, None] for one in rope_at(positions_N, dim, config.rope_theta, x_Nh))
        for index, block in enumerate(self._blocks):
            per_head = F.linear(_norm(block.attention_norm, x_Nh), self._qkv[index]).view(
                -1, heads + 2 * kv_heads, dim
            )
            turned = rotate(per_head[:, : heads + kv_heads], cos, sin)
            mixed = attend(
                index, turned[:, :heads], turned[:, heads:], per_head[:, heads + kv_heads :], dim**-0.5
            )
            x_Nh = x_Nh + F.linear(mixed.reshape(-1, heads * dim), block.attention.dense)
            out, _ = block.moe(_norm(block.moe_norm, x_Nh)[None], None)
            x_Nh = x_Nh + out[0]
        last = _norm(self._model.final_norm, x_Nh.index_select(0, last_B))
        return F.linear(last, self._head).float()


def _norm(norm: RmsNorm, x_Nh: Tensor) -> Tensor:
    out: Tensor = RmsNormFn.apply(x_Nh, norm.weight, norm.eps)  # type: ignore[no-untyped-call]
    return out
