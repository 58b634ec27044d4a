"""Sampling: greedy, seeded, within the nucleus; it stops where told."""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.infer.decode import generate, sample

CPU = torch.device("cpu")


class Counter:
    """Says that the next token is the last one plus one; the cache counts what it was fed."""

    def new_cache(self, batch: int, capacity: int) -> list[int]:
        return [capacity]

    def decode(self, tokens_BT: Tensor, cache: list[int]) -> Tensor:
        cache[0] -= tokens_BT.shape[1]
        assert cache[0] >= 0, "more tokens than the cache was made for"
        return torch.nn.functional.one_hot(tokens_BT[:, -1] + 1, 20).float() * 50


def test_it_goes_on_until_the_stop_token_or_the_bound() -> None:
    assert list(generate(Counter(), [1, 2], 30, 0.0, 1.0, 0, stop=7, device=CPU)) == [3, 4, 5, 6]
    assert list(generate(Counter(), [1, 2], 3, 1.0, 0.9, 0, stop=7, device=CPU)) == [3, 4, 5]


def test_only_the_nucleus_is_drawn_from() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = {sample(logits, 1.0, 0.79, generator) for _ in range(300)}
    assert drawn == {0, 1}
    assert {sample(logits, 1.0, 0.01, generator) for _ in range(50)} == {0}
    assert {sample(logits, 1.0, 1.0, generator) for _ in range(500)} == {0, 1, 2, 3}


def test_the_same_seed_draws_the_same() -> None:
    logits = torch.zeros(100)
    first, second = (
        [sample(logits, 1.0, 1.0, generator) for _ in range(20)]
        for generator in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert first == second and len(set(first)) > 10
