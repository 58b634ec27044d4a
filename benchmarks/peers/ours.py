"""Our sharded optimizer as an arm: `paro_IIG` and the other nine, on the rings as they choose for themselves.

As its users do: `paro.shard` on the model and torch's own AdamW, bf16 parameters and gradients with fp32
masters. The last micro-step is announced, as our training loop does, so that what goes between the groups
begins while backward still runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.peers.common import Seen, Setup, StateBytes, adamw, build_model, loss_of
from shoestring.cluster.strategies import BUILT, equal_groups, parse_strategy
from shoestring.parallel import paro
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.rings import Choice, Request, choose

TIMEOUT_S = 120.0


@dataclass(frozen=True)
class ParoChoice:
    """How ours is set.

    Attributes:
        strategy: three letters.
        method: of rings over all ranks; `auto`: as the rings choose.
        hint: whether the last micro-step is announced.
    """

    strategy: str = "IIG"
    method: str = "auto"
    hint: bool = True


CHOICES = tuple((f"paro_{name}", ParoChoice(name)) for name in BUILT)


class ParoArm:
    """The sharded optimizer over the processes of the default group.

    Args:
        choice: see ParoChoice.
        name: of this arm's rings.
    """

    def __init__(self, setup: Setup, choice: ParoChoice, name: str = "peers") -> None:
        self._choice = choice
        strategy = parse_strategy(choice.strategy)
        layout = equal_groups(dist.get_world_size(), setup.ranks_per_host)
        self._exchange = RingExchange(
            layout, dist.get_rank(), timeout_s=TIMEOUT_S, choose=_chooser(choice.method), name=name,
            strategy=strategy,
        )  # fmt: skip
        self._model = build_model(setup)
        self._optimizer = paro.shard(
            self._model, adamw(setup, self._model.parameters()), choice.strategy, exchange=self._exchange,
            dtype=setup.compute_dtype,
        )  # fmt: skip

    def step(self, batches: list[Tensor], look: Callable[[Seen], None] | None) -> Tensor:
        """See Arm."""
        losses = []
        optimizer = self._optimizer
        for number, batch in enumerate(batches):
            optimizer.engine.last = self._choice.hint and number == len(batches) - 1
            loss = loss_of(self._model, batch)
            (loss / len(batches)).backward()
            losses.append(loss.detach().float())
        optimizer.step()
        if look is not None:
            # The norm is that of the gradient just applied.
            look(Seen(self._held(), optimizer.norm))
        return torch.stack(losses)

    def settle(self) -> None:
        """See Arm: updated parameters travel while the next step begins."""
        self._optimizer.engine.settle_parameters()

    def close(self) -> None:
        """See Arm."""
        self.settle()
        dist.barrier()
        self._exchange.close()

    def units(self) -> list[dict[str, Any]]:
        """Of each unit: elements, filled up ones, and whether its parameters stay for the backward pass."""
        units = self._optimizer.engine.units
        return [
            {
                "parameters": sum(flat.numel for flat in unit.flats),
                "padded": sum(flat.padded for flat in unit.flats),
                "kept": unit.index in (0, len(units) - 1),
            }
            for unit in units
        ]

    def _held(self) -> StateBytes:
        sizes = [flat.bytes() for flat in self._optimizer.engine.flats]
        total = {key: sum(size[key] for size in sizes) for key in ("parameters", "gradients", "states")}
        return StateBytes(total["parameters"], total["gradients"], total["states"])


def states_of(choice: ParoChoice, setup: Setup, world: int) -> int:
    """Into how many parts masters and moments are cut."""
    return equal_groups(world, setup.ranks_per_host).parts(parse_strategy(choice.strategy).states)


def _chooser(method: Any) -> Callable[[Request], Choice]:
    if method == "auto":
        return choose

    def fixed(request: Request) -> Choice:
        # The norm of the gradient and a single level stay as they are: only the long rings are compared.
        mine = choose(request)
        return Choice(method, "asked for") if mine.method == "overlap" else mine

    return fixed
