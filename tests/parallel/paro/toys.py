"""Small models of every kind that is to be sharded, their batches, and one process that sees all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from shoestring.cluster.strategies import Layout
from shoestring.models.moe_lm.config import TINY
from shoestring.models.moe_lm.layout import METHODS
from shoestring.models.moe_lm.model import MoeLM
from shoestring.parallel import paro
from shoestring.parallel.paro.exchange import Alone, Exchange, Finished

WORDS = 48
RATE = 3e-3
MOE = TINY.model_copy(
    update={"vocab_size": WORDS, "hidden": 16, "heads": 2, "kv_heads": 1, "expert_width": 8}
)
Build = Callable[[], nn.Module]


class Layer(nn.Module):
    """A frozen or trainable product, beside it an adapter of rank 2; odd sizes, so that shards cut rows."""

    def __init__(self, width: int, adapter: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 19)
        self.down = nn.Linear(19, width)
        self.adapter = nn.ModuleList([nn.Linear(width, 2), nn.Linear(2, width)]) if adapter else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> [..., width]."""
        inner = self.norm(x)
        out: Tensor = x + self.down(torch.tanh(self.up(inner)))
        if self.adapter is not None:
            out = out + self.adapter[1](self.adapter[0](inner))
        return out


class Net(nn.Module):
    """An embedding that is the head, too; layers between."""

    def __init__(self, width: int = 12, adapter: bool = False, layers: int = 2, recompute: str = "") -> None:
        super().__init__()
        self.recompute = recompute
        self.embed = nn.Embedding(WORDS, width)
        self.layers = nn.ModuleList(Layer(width, adapter) for _ in range(layers))
        self.head = nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.embed.weight
        if recompute == "inside":
            for layer in range(layers):
                up = self.get_submodule(f"layers.{layer}.up")
                up.forward = partial(checkpoint, up.forward, use_reentrant=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> logits [B, T, V]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.recompute == "around" else layer(x)
        out: Tensor = self.head(x)
        return out


def tied() -> nn.Module:
    """All trainable."""
    return Net()


def frozen() -> nn.Module:
    """Only the adapters in the layers are trained."""
    model = Net(adapter=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("adapter" in name)
    return model


def moe() -> nn.Module:
    """The product's language model."""
    return MoeLM(MOE, seed=3)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean over the tokens."""
    if isinstance(model, MoeLM):
        out = model.loss(tokens, step=0, sample_ids=range(len(tokens)))
        return out.loss_sum / out.weight
    out = model(tokens[:, :-1])
    logits = out if isinstance(out, Tensor) else out.logits
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def tokens_of(step: int, rank: int, micro: int = 0) -> Tensor:
    """[2, 9] int64: the batch of one rank in one micro-step; each token is the one before it plus 1."""
    generator = torch.Generator().manual_seed(step * 10_000 + rank * 100 + micro)
    return (torch.randint(0, WORDS, (2, 1), generator=generator) + torch.arange(9)) % WORDS


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Over all parameters, frozen ones too, as users do."""
    return torch.optim.AdamW(model.parameters(), lr=RATE)


def sharded(
    build: Build,
    strategy: str,
    exchange: Exchange,
    optimizer: Callable[[nn.Module], Any] = adamw,
    **options: Any,
) -> tuple[nn.Module, paro.ShardedOptimizer]:
    """The model of seed 0 and its optimizer."""
    torch.manual_seed(0)
    model = build()
    methods = METHODS if isinstance(model, MoeLM) else ()
    return model, paro.shard(model, optimizer(model), strategy, exchange=exchange, methods=methods, **options)


def train(
    model: nn.Module,
    optimizer: paro.ShardedOptimizer,
    rank: int,
    steps: Sequence[int],
    micros: Sequence[int] = (1,),
    hint: bool = True,
) -> list[float]:
    """This rank's loss before each step.

    Args:
        micros: how many batches each rank has in a step; the mean is over the largest; one for all ranks.
        hint: whether the engine is told of each step's last micro-step.
    """
    most = max(micros)
    own = micros[rank] if len(micros) > 1 else micros[0]
    losses = []
    for step in steps:
        total = 0.0
        for micro in range(most):
            optimizer.engine.last = hint and micro == most - 1
            if micro >= own:
                optimizer.engine.idle()
                continue
            loss = loss_of(model, tokens_of(step, rank, micro)) / most
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    optimizer.engine.settle_parameters()  # whoever leaves earlier is gone for those who still publish
    return losses


def alone(
    build: Build,
    ranks: int,
    steps: int,
    micros: Sequence[int] = (1,),
    clip_norm: float = 0.0,
    optimizer: Callable[[nn.Module], Any] = adamw,
) -> tuple[list[float], nn.Module]:
    """Losses of plain torch in this process with the batches of all ranks, and the model it ends with."""
    torch.manual_seed(0)
    model = build()
    inner = optimizer(model)
    losses = []
    for step in range(steps):
        total = 0.0
        for rank in range(ranks):
            for micro in range(micros[rank] if len(micros) > 1 else micros[0]):
                loss = loss_of(model, tokens_of(step, rank, micro)) / max(micros) / ranks
                loss.backward()
                total += loss.item()
        if clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        inner.step()
        inner.zero_grad()
        losses.append(total)
    return losses, model


def worst(found: Sequence[float], wanted: Sequence[float]) -> float:
    """Largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


class Nobody(Alone):
    """The exchange of a rank whose peers are not there: enough to be cut for it, not to train."""

    def __init__(self, layout: Layout, rank: int) -> None:
        self.layout, self.rank = layout, rank


class Later(Finished):
    """Over once it is told so."""

    def __init__(self) -> None:
        self.over = False

    def done(self) -> bool:
        """Whether it was told."""
        return self.over

    def wait(self) -> None:
        """Waiting makes it so."""
        self.over = True
