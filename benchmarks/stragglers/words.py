"""What is trained where loss has to tell: a byte-level language model on the source of Python's library."""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoestring.train.task import BaseTask, LossOut, SampleIds, StepContext

WIDTH, LAYERS, HEADS, CONTEXT = 128, 3, 4, 128
SAMPLES = 1 << 14
HELD_OUT = 256
HELD_OUT_OF = 20
RATE = 2e-3


class Block(nn.Module):
    """Pre-norm causal attention and MLP: [B, T, WIDTH] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """See above."""
        heads = self.qkv(self.before_attention(x)).unflatten(-1, (3, HEADS, WIDTH // HEADS))
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        done: Tensor = x + self.down(nn.functional.gelu(self.up(self.before_mlp(x))))
        return done


class Model(nn.Module):
    """Bytes [B, T] -> logits of the next byte [B, T, 256]."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """See above."""
        x = self.bytes(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@cache
def text(held_out: bool) -> NDArray[np.uint8]:
    """The library's source, one file after the other; one file in HELD_OUT_OF is held out, by its name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    parts = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] in ("site-packages", "test") or "tests" in name.parts:
            continue
        apart = hashlib.sha256(str(name).encode()).digest()[0] % HELD_OUT_OF == 0
        if apart == held_out:
            parts.append(path.read_bytes())
    return np.frombuffer(b"".join(parts), dtype=np.uint8)


def windows(ids: NDArray[np.int64], held_out: bool = False) -> Tensor:
    """int64 [n, CONTEXT + 1]: bytes from places that the ids draw."""
    data = text(held_out)
    starts = [int(np.random.default_rng(int(i)).integers(len(data) - CONTEXT - 1)) for i in ids]
    return torch.from_numpy(np.stack([data[s : s + CONTEXT + 1] for s in starts]).astype(np.int64))


def loss_sum(model: nn.Module, batch: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over bytes."""
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")


def held_out_loss(model: nn.Module) -> float:
    """Nats a byte on files that no run trains on."""
    batch = windows(np.arange(HELD_OUT), held_out=True)
    with torch.no_grad():
        return float(sum(loss_sum(model, part) for part in batch.split(32))) / (HELD_OUT * CONTEXT)


class Read(BaseTask):
    """The task for our own training loop."""

    samples = SAMPLES

    def build(self, device: torch.device) -> nn.Module:
        """See Task."""
        return Model()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See Task."""
        return torch.optim.AdamW(model.parameters(), lr=RATE)

    def load(self, ids: SampleIds) -> Any:
        """See Task."""
        return windows(ids)

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        """See Task."""
        return LossOut(loss_sum(model, batch), float(len(ids) * CONTEXT))


def make(settings: dict[str, Any], run_dir: Path) -> Read:
    """The task, for workers."""
    return Read()
