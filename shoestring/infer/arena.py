"""Keys and values of many sequences in one preallocated cache, and attention over it (source: ours; a softmax
in blocks that are joined afterwards: in the manner of arXiv 2205.14135).

A layer's keys are one tensor [blocks, G, S, D], S tokens a block; a sequence owns contiguous blocks. In a
step of one token a sequence, attention runs over all blocks in use at once: each block with the query of its
owner, in one batched product with no copy of keys, and the parts of a sequence are joined afterwards.
Shapes: n blocks, B sequences, N tokens, H heads, G key-value heads, R = H / G, D head width, S block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shoestring.infer.segments import Span
from shoestring.models.ragged import LayerShape, RaggedShape

BLOCK = 32
"""Tokens of a block. 16 doubles the number of small products, 64 wastes half a block of 64 a sequence; 32 was
the quickest on a CPU (docs/design/generation.md)."""
_NOWHERE = -1e30  # a score that no softmax sees, and whose differences are numbers


class Arena:
    """The cache.

    Args:
        shape: of the model.
        blocks: of `BLOCK` tokens each.

    It starts as zeros: a slot that was never written takes part with a weight of zero, and zero times
    something that is no number would be none.
    """

    def __init__(self, shape: RaggedShape, blocks: int) -> None:
        def room(layer: LayerShape, width: int) -> Tensor:
            size = (blocks, layer.kv_heads, BLOCK, width)
            return torch.zeros(size, dtype=shape.dtype, device=shape.device)

        self.keys = [room(layer, layer.key_dim) for layer in shape.layers]
        self.values = [room(layer, layer.value_dim) for layer in shape.layers]
        self.device = shape.device

    def move(self, old: Span, new: Span) -> None:
        """Copy a sequence to its new place, which may overlap the old one."""
        blocks = min(old.blocks, new.blocks)
        for tensor in (*self.keys, *self.values):
            tensor[new.start : new.start + blocks] = tensor[old.start : old.start + blocks].clone()

    def clear(self, span: Span) -> None:
        """Forget what is there: the next owner must not meet values that are no numbers."""
        for tensor in (*self.keys, *self.values):
            tensor[span.start : span.end] = 0

    def slots(self, spans: Sequence[Span], places: Sequence[range]) -> tuple[Tensor, Tensor]:
        """(block, offset) of the tokens at `places` of each sequence, one after the other, int64 [N]."""
        where = [
            span.start * BLOCK + np.arange(place.start, place.stop)
            for span, place in zip(spans, places, strict=True)
        ]
        flat = torch.from_numpy(np.concatenate(where)).to(self.device)
        return flat // BLOCK, flat % BLOCK


@dataclass(frozen=True)
class Prefill:
    """Attention of whole prompts, each to itself alone.

    Attributes:
        arena: where keys and values are kept.
        block_N, offset_N: the slot of each token.
        bounds: first and last token of each prompt, in N.
    """

    arena: Arena
    block_N: Tensor
    offset_N: Tensor
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, arena: Arena, spans: Sequence[Span], lengths: Sequence[int]) -> Prefill:
        """Of prompts of these lengths, which own these spans."""
        block, offset = arena.slots(spans, [range(length) for length in lengths])
        ends = np.cumsum(lengths).tolist()
        bounds = tuple(zip([0, *ends[:-1]], ends, strict=True))
        return cls(arena, block, offset, bounds)

    def __call__(self, layer: int, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, scale: float) -> Tensor:
        """See `shoestring.models.ragged.Attend`."""
        self.arena.keys[layer][self.block_N, :, self.offset_N] = k_NGD
        self.arena.values[layer][self.block_N, :, self.offset_N] = v_NGD
        parts = [
            causal(q_NHD[start:end], k_NGD[start:end], v_NGD[start:end], scale) for start, end in self.bounds
        ]
        return torch.cat(parts)


@dataclass(frozen=True)
class Decode:
    """Attention of one new token a sequence to all that its span holds.

    Attributes:
        arena: the cache.
        block_B, offset_B: the slot of each new token.
        chosen: the blocks that are looked at: a range, or their numbers where they lie far apart.
        owner_n: the sequence that owns each of them; B: nobody.
        mask_nS: 0 where a slot holds a token, else very low; fp32.
    """

    arena: Arena
    block_B: Tensor
    offset_B: Tensor
    chosen: slice | Tensor
    owner_n: Tensor
    mask_nS: Tensor

    @classmethod
    def of(cls, arena: Arena, spans: Sequence[Span], lengths: Sequence[int]) -> Decode:
        """Of sequences that hold `lengths` tokens each, the new one included."""
        device = arena.device
        block, offset = arena.slots(spans, [range(length - 1, length) for length in lengths])
        # Blocks that are owned but not in use yet are passed over like free ones.
        used = np.array([-(-length // BLOCK) for length in lengths])
        starts = np.array([span.start for span in spans])
        owner = np.repeat(np.arange(len(spans)), used)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(used) - used, used)
        number = starts[owner] + within
        left = np.array(lengths)[owner] - within * BLOCK
        low, high = int(number.min()), int(number.max()) + 1
        chosen: slice | Tensor
        if 2 * len(number) >= high - low:
            # A view over everything in between costs less than a copy of what is wanted.
            all_owner = np.full(high - low, len(spans))
            all_left = np.zeros(high - low, dtype=left.dtype)
            all_owner[number - low], all_left[number - low] = owner, left
            chosen, owner, left = slice(low, high), all_owner, all_left
        else:
            chosen = torch.from_numpy(number).to(device)
        mask = np.where(np.arange(BLOCK)[None] < left[:, None], np.float32(0), np.float32(_NOWHERE))
        return cls(
            arena,
            block,
            offset,
            chosen,
            torch.from_numpy(owner).to(device),
            torch.from_numpy(mask).to(device),
        )

    def __call__(self, layer: int, q_NHD: Tensor, k_NGD: Tensor, v_NGD: Tensor, scale: float) -> Tensor:
        """See `shoestring.models.ragged.Attend`; N is B."""
        keys, values = self.arena.keys[layer], self.arena.values[layer]
        keys[self.block_B, :, self.offset_B] = k_NGD
        values[self.block_B, :, self.offset_B] = v_NGD
        k_nGSD, v_nGSD = keys[self.chosen], values[self.chosen]
        blocks, groups, size, dim = k_nGSD.shape
        batch, heads, _ = q_NHD.shape
        rows = heads // groups
        q_nGRD = torch.empty((batch + 1, groups, rows, dim), dtype=q_NHD.dtype, device=q_NHD.device)
        q_nGRD[:batch] = (q_NHD * scale).view(batch, groups, rows, dim)
        q_nGRD[batch] = 0
        asked = q_nGRD.index_select(0, self.owner_n).view(blocks * groups, rows, dim)
        score = torch.bmm(asked, k_nGSD.reshape(-1, size, dim).transpose(1, 2)).float()
        score = score.view(blocks, groups * rows, size).add_(self.mask_nS[:, None])
        # A softmax in parts: the highest score of a sequence first, over all of its blocks.
        index = self.owner_n[:, None].expand(blocks, heads)
        top = score.new_full((batch + 1, heads), _NOWHERE)
        top.scatter_reduce_(0, index, score.amax(-1), "amax")
        share = score.sub_(top.index_select(0, self.owner_n)[..., None]).exp_()
        total = score.new_zeros((batch + 1, heads)).index_add_(0, self.owner_n, share.sum(-1))
        weighted = torch.bmm(
            share.to(values.dtype).view(blocks * groups, rows, size),
            v_nGSD.reshape(blocks * groups, size, -1),
        ).view(blocks, heads, -1)
        out = score.new_zeros((batch + 1, heads, weighted.shape[-1]))
        out.index_add_(0, self.owner_n, weighted.float())
        return (out[:batch] / total[:batch, :, None]).to(q_NHD.dtype)


def causal(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, scale: float) -> Tensor:
    """Attention of one whole sequence to itself: [T, H, D], [T, G, D] -> [T, H, D of the values]."""
    mixed = F.scaled_dot_product_attention(
        q_THD.transpose(0, 1)[None],
        k_TGD.transpose(0, 1)[None],
        v_TGD.transpose(0, 1)[None],
        is_causal=q_THD.shape[0] > 1,
        scale=scale,
        enable_gqa=q_THD.shape[1] != k_TGD.shape[1],
    )
    return mixed[0].transpose(0, 1)
