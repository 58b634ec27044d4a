"""What is trained: a small network on labelled noise; each sample is fixed by its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shoestring.train.task import BaseTask, LossOut, SampleIds, StepContext

WIDTH, TOKENS, LAYERS, CLASSES = 128, 64, 4, 16
SAMPLES = 1 << 20
HELD_OUT = 512
RATE = 1e-3


class Net(nn.Module):
    """LAYERS residual blocks over TOKENS tokens, then the mean: [B, TOKENS, WIDTH] -> [B, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
            )
            for _ in range(LAYERS)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, TOKENS, WIDTH] -> [B, CLASSES]."""
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def build() -> Net:
    """The network from torch's seeded generator."""
    return Net()


def samples(ids: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Inputs [n, TOKENS, WIDTH] and labels [n]: a random direction that the tokens share tells the class."""
    rng = np.random.default_rng(20_240)
    directions = torch.from_numpy(rng.standard_normal((CLASSES, WIDTH))).float()
    labels = torch.from_numpy(ids % CLASSES)
    noise = torch.stack([
        torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(int(i))) for i in ids
    ])  # fmt: skip
    return noise + 0.15 * directions[labels][:, None, :], labels


def held_out_loss(model: nn.Module) -> float:
    """Cross-entropy in nats on samples that no run trains on."""
    inputs, labels = samples(np.arange(SAMPLES, SAMPLES + HELD_OUT))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(inputs), labels))


class Classify(BaseTask):
    """The task for our own training loop."""

    samples = SAMPLES

    def build(self, device: torch.device) -> nn.Module:
        """See Task."""
        return build()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """See Task."""
        return torch.optim.AdamW(model.parameters(), lr=RATE)

    def load(self, ids: SampleIds) -> Any:
        """See Task."""
        return samples(ids)

    def loss(self, model: nn.Module, batch: Any, ids: SampleIds, context: StepContext) -> LossOut:
        """See Task."""
        inputs, labels = batch
        loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        return LossOut(loss, float(len(ids)))


def make(settings: dict[str, Any], run_dir: Path) -> Classify:
    """The task, for workers."""
    return Classify()
