"""Token-by-token generation with a key-value cache (source: ours; nucleus sampling: arXiv 1904.09751)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class Decodable(Protocol):
    """A model that decodes against a cache."""

    def new_cache(self, batch: int, capacity: int) -> Any:
        """An empty cache for `batch` sequences of up to `capacity` tokens."""
        ...

    def decode(self, tokens_BT: Tensor, cache: Any) -> Tensor:
        """Feed tokens [B, T]; logits of the last one [B, V]."""
        ...


def generate(
    model: Decodable,
    prompt: list[int],
    tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    stop: int,
    device: torch.device,
) -> Iterator[int]:
    """Continue `prompt` by up to `tokens` tokens, one at a time.

    Args:
        prompt: at least one token id.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the smallest set of likeliest tokens that holds this much probability.
        stop: a token id that ends the text; it is not given out.

    Raises:
        ConfigError: prompt and tokens are longer than the model's positions.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = model.new_cache(1, len(prompt) + tokens)
    logits = model.decode(torch.tensor([prompt], device=device), cache)
    for made in range(tokens):
        token = sample(logits[0].float().cpu(), temperature, top_p, generator)
        if token == stop:
            return
        yield token
        if made + 1 < tokens:
            logits = model.decode(torch.tensor([[token]], device=device), cache)


def sample(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Draw one token id from fp32 logits [V]."""
    if temperature == 0:
        return int(logits_V.argmax())
    chances, order = (logits_V / temperature).softmax(-1).sort(descending=True)
    # The token that crosses the bound still belongs to the set: never an empty one.
    kept = chances.cumsum(-1) - chances < top_p
    chosen = torch.multinomial(chances * kept, 1, generator=generator)
    return int(order[chosen])
