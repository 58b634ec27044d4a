"""Grouped-query attention with rotary positions, and its key-value cache.

On CUDA the scores go through torch's fused attention. On a CPU the fused kernel takes about twice the time of
blocks of plain matrix products (measured, see docs/log.md), so those are used.
Shapes: B sequences, T tokens, H heads, G key-value heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from shoestring.base.errors import ConfigError
from shoestring.models.moe_lm.config import MoeConfig

_QUERY_BLOCK = 128  # rows of queries that share one product; smaller wastes less above the diagonal


def rope_tables(start: int, length: int, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D/2] of positions start .. start + length - 1; computed in fp64, typed like `like`."""
    return rope_at(torch.arange(start, start + length, device=like.device), head_dim, theta, like)


def rope_at(positions_T: Tensor, head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin [T, D/2] of any positions; as `rope_tables`."""
    inv_freq = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=like.device) / head_dim)
    angle = torch.outer(positions_T.double(), inv_freq)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of the last dimension: x [..., T, D], cos, sin [T, D/2] -> contiguous [..., T, D]."""
    half = x.shape[-1] // 2
    low, high = x[..., :half], x[..., half:]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(low, cos, out=out[..., :half]).addcmul_(high, sin, value=-1.0)
    torch.mul(high, cos, out=out[..., half:]).addcmul_(low, sin)
    return out


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _QUERY_BLOCK, length)) for start in range(0, length, _QUERY_BLOCK)]


class CausalAttentionFn(torch.autograd.Function):
    """softmax(rotate(q) rotate(k)^T / sqrt(D), causal) v, by blocks of queries."""

    @staticmethod
    def forward(ctx: Any, qkv_BTC: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
        """qkv_BTC [B, T, (H + 2G) D] -> [B, T, H D]."""
        batch, length, width = qkv_BTC.shape
        dim, group = width // (heads + 2 * kv_heads), heads // kv_heads
        per_head = qkv_BTC.view(batch, length, -1, dim).transpose(1, 2)
        q = rotate(per_head[:, :heads], cos, sin).mul_(dim**-0.5).view(batch * kv_heads, group, length, dim)
        k = rotate(per_head[:, heads : heads + kv_heads], cos, sin).view(batch * kv_heads, length, dim)
        v = per_head[:, heads + kv_heads :].reshape(batch * kv_heads, length, dim)
        out = torch.empty_like(q)
        shares = []
        for start, end in _blocks(length):
            rows = q[:, :, start:end].reshape(batch * kv_heads, -1, dim)
            score = torch.bmm(rows, k[:, :end].transpose(1, 2))
            _mask_diagonal(score.view(-1, end - start, end), start)
            share = torch.softmax(score, dim=-1)
            out[:, :, start:end] = torch.bmm(share, v[:, :end]).view(-1, group, end - start, dim)
            shares.append(share)
        ctx.save_for_backward(q, k, v, cos, sin, *shares)
        return out.view(batch, heads, length, dim).transpose(1, 2).reshape(batch, length, heads * dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_BTC: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Gradient of qkv."""
        q, k, v, cos, sin, *shares = ctx.saved_tensors
        pairs, group, length, dim = q.shape
        batch, heads = dout_BTC.shape[0], dout_BTC.shape[2] // dim
        kv_heads = heads // group
        dout = dout_BTC.view(batch, length, heads, dim).transpose(1, 2).reshape(q.shape)
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        # From the last block to the first: the first write covers every key, the later ones add to a prefix.
        for (start, end), share in zip(reversed(_blocks(length)), reversed(shares), strict=True):
            drows = dout[:, :, start:end].reshape(pairs, -1, dim)
            dshare = torch.bmm(drows, v[:, :end].transpose(1, 2))
            dscore = torch._softmax_backward_data(dshare, share, -1, share.dtype)
            dv[:, :end] += torch.bmm(share.transpose(1, 2), drows)
            dq[:, :, start:end] = torch.bmm(dscore, k[:, :end]).view(pairs, group, end - start, dim)
            dk[:, :end] += torch.bmm(dscore.transpose(1, 2), q[:, :, start:end].reshape(pairs, -1, dim))
        dqkv = torch.empty(batch, length, heads + 2 * kv_heads, dim, dtype=q.dtype, device=q.device)
        by_head = dqkv.transpose(1, 2)
        by_head[:, :heads] = rotate(dq.mul_(dim**-0.5).view(batch, heads, length, dim), cos, -sin)
        by_head[:, heads : heads + kv_heads] = rotate(dk.view(batch, kv_heads, length, dim), cos, -sin)
        by_head[:, heads + kv_heads :] = dv.view(batch, kv_heads, length, dim)
        return dqkv.view(batch, length, -1), None, None, None, None


def _mask_diagonal(score: Tensor, start: int) -> None:
    """Forbid the future in place: score [.., rows, end], row r may see keys up to start + r."""
    rows = score.shape[-2]
    mask = torch.full((rows, rows), float("-inf"), dtype=score.dtype, device=score.device).triu_(1)
    score[..., start:] += mask


def causal_attention(qkv_BTC: Tensor, cos: Tensor, sin: Tensor, heads: int, kv_heads: int) -> Tensor:
    """Causal attention over whole sequences: qkv_BTC [B, T, (H + 2G) D] -> [B, T, H D]."""
    if qkv_BTC.device.type == "cpu":
        out: Tensor = CausalAttentionFn.apply(qkv_BTC, cos, sin, heads, kv_heads)  # type: ignore[no-untyped-call]
        return out
    batch, length, width = qkv_BTC.shape
    dim = width // (heads + 2 * kv_heads)
    per_head = qkv_BTC.view(batch, length, -1, dim).transpose(1, 2)
    q = _rotate_plain(per_head[:, :heads], cos, sin)
    k = _rotate_plain(per_head[:, heads : heads + kv_heads], cos, sin)
    v = per_head[:, heads + kv_heads :]
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return fused.transpose(1, 2).reshape(batch, length, heads * dim)


def _rotate_plain(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


class KvCache:
    """Keys and values of the tokens seen so far, one contiguous segment a layer.

    Args:
        config: shapes.
        batch: sequences decoded together, all of the same length.
        capacity: tokens that fit.
        like: a tensor with the dtype and device to use.
    """

    def __init__(self, config: MoeConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.k = like.new_zeros(shape)
        self.v = like.new_zeros(shape)
        self.length = 0
        self.capacity = capacity

    def extend(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values of one layer; return all of that layer's, [B, G, length + T, D].

        Raises:
            ConfigError: if they do not fit.
        """
        end = self.length + k_BGTD.shape[2]
        if end > self.capacity:
            raise ConfigError(
                f"the key-value cache holds {self.capacity} tokens, and {end} are needed",
                "ask for fewer new tokens, or make the cache larger",
            )
        self.k[layer, :, :, self.length : end] = k_BGTD
        self.v[layer, :, :, self.length : end] = v_BGTD
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as seen, after every layer has stored them."""
        self.length += tokens


class Attention(nn.Module):
    """Projections around causal attention; no biases.

    Weights: `query` [H D, h], `key` and `value` [G D, h], `dense` [h, H D], kept apart so that an optimizer
    that treats matrices as matrices sees the real ones.
    """

    def __init__(self, config: MoeConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.query = nn.Parameter(torch.empty(config.heads * config.head_dim, config.hidden))
        self.key = nn.Parameter(torch.empty(config.kv_heads * config.head_dim, config.hidden))
        self.value = nn.Parameter(torch.empty(config.kv_heads * config.head_dim, config.hidden))
        self.dense = nn.Parameter(torch.empty(config.hidden, config.heads * config.head_dim))

    def qkv(self, x_BTh: Tensor) -> Tensor:
        """[B, T, h] -> queries, keys and values side by side [B, T, (H + 2G) D]."""
        weight = torch.cat((self.query, self.key, self.value)).to(x_BTh.dtype)
        return F.linear(x_BTh, weight)

    def forward(self, x_BTh: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Whole sequences: [B, T, h] -> [B, T, h]."""
        mixed = causal_attention(self.qkv(x_BTh), cos, sin, self.heads, self.kv_heads)
        return F.linear(mixed, self.dense.to(x_BTh.dtype))

    def decode(self, x_BTh: Tensor, cos: Tensor, sin: Tensor, cache: KvCache, layer: int) -> Tensor:
        """New tokens against the cache: [B, T, h] -> [B, T, h]; cos and sin of the new positions."""
        batch, length, _ = x_BTh.shape
        per_head = self.qkv(x_BTh).view(batch, length, -1, self.head_dim).transpose(1, 2)
        q = rotate(per_head[:, : self.heads], cos, sin)
        k = rotate(per_head[:, self.heads : self.heads + self.kv_heads], cos, sin)
        keys, values = cache.extend(layer, k, per_head[:, self.heads + self.kv_heads :])
        seen = keys.shape[2]
        mask = torch.ones(length, seen, dtype=torch.bool, device=q.device).tril_(seen - length)
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return F.linear(mixed.transpose(1, 2).reshape(batch, length, -1), self.dense.to(x_BTh.dtype))
