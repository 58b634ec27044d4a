"""How the language model may be sharded: plain data beside the model (source: ours)."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from shoestring.models.moe_lm.model import MoeLM

METHODS = ("loss", "token_nll", "decode")  # other than forward, that begin a pass through the model


def units(model: MoeLM) -> list[nn.Module]:
    """Modules that are gathered as one, in the order of use: the L blocks."""
    return list(model.layers)


def keeps_fp32(name: str) -> bool:
    """Whether a parameter stays in fp32 where others compute in bf16: the router, whose top-k is discrete.

    Its running statistics are buffers, which stay as they are in any case.
    """
    return name.endswith(".router.weight")


def initial_values(model: MoeLM, seed: int) -> Iterator[tuple[str, Tensor]]:
    """(name, value) of each parameter and buffer, fp32 on the CPU, one at a time.

    For a model on the meta device, which never has to be anywhere as a whole; equal to what `MoeLM(config,
    seed)` holds.
    """
    yield from model.initial_values(seed)
