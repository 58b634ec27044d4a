"""A model with everything that a state can hold, and states on disk that can be compared."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.parallel import paro, tensorfiles
from shoestring.parallel.paro.exchange import Alone
from tests.parallel.paro import toys

AFTER = (3, 4)  # steps after the state was saved


class Mixed(toys.Net):
    """Trained and frozen parameters in one layer, tied and single ones in the root, a buffer that matters."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__(adapter=True)
        self.layers[0].up.requires_grad_(False)
        self.layers[1].norm.requires_grad_(False)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.fixed = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.register_buffer("shift", torch.zeros(12))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> logits [B, T, V]."""
        x = self.embed(tokens) + self.shift
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x * self.gain * self.fixed)
        return out


def mixed() -> nn.Module:
    """As above."""
    return Mixed()


def save(optimizer: paro.ShardedOptimizer, folder: Path) -> None:
    """All ranks write their shards."""
    folder.mkdir(exist_ok=True, parents=True)
    tensorfiles.write(paro.own_tensors(optimizer), folder, dist.get_rank())
    dist.barrier()


def load(optimizer: paro.ShardedOptimizer, folder: Path) -> None:
    """The shards of this rank."""
    tensorfiles.read(paro.state_tensors(optimizer), folder)
    optimizer.engine.publish()


def contents(folder: Path) -> dict[str, Tensor]:
    """Whole tensors, as one process reads them."""
    _, optimizer = toys.sharded(mixed, "NNN", Alone())
    tensors = paro.state_tensors(optimizer)
    tensorfiles.read(tensors, folder)
    return tensors


def check_losses(found: list[float], folder: Path) -> None:
    """All ranks went on with the same batches from a state; one process that reads it does the same."""
    model, optimizer = toys.sharded(mixed, "NNN", Alone())
    load(optimizer, folder)
    wanted = toys.train(model, optimizer, 0, AFTER)
    assert toys.worst(found, wanted) < 1e-5, (found, wanted)


def check_equal(found: Path, wanted: Path) -> None:
    """Bit by bit."""
    here, there = contents(found), contents(wanted)
    assert here.keys() == there.keys()
    assert len({name.rsplit(".", 1)[-1] for name in here} & {"step", "exp_avg", "exp_avg_sq", "shift"}) == 4
    different = [name for name in there if not torch.equal(here[name], there[name])]
    assert not different, (found.name, different)
