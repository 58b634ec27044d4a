"""Every token is scored exactly once, with the context that the window promises."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shoestring.evaluate.bits import bits_per_byte

CPU = torch.device("cpu")


class Bigram:
    """Nats of a token depend on the one before it only, so windows must not change the sum."""

    def __init__(self, vocab_size: int = 50) -> None:
        logits = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(1))
        self.table = -logits.log_softmax(-1)
        self.longest = 0

    def token_nll(self, tokens_BT1: Tensor) -> Tensor:
        self.longest = max(self.longest, tokens_BT1.shape[1] - 1)
        return self.table[tokens_BT1[:, :-1], tokens_BT1[:, 1:]]


class Position:
    """Nats are the number of tokens seen before: shows how much context each prediction had."""

    def token_nll(self, tokens_BT1: Tensor) -> Tensor:
        return torch.arange(1.0, tokens_BT1.shape[1]).expand(len(tokens_BT1), -1)


@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=6),
    window=st.integers(2, 40),
    stride_share=st.floats(0.01, 1.0),
    batch_tokens=st.integers(1, 200),
)
def test_windows_never_change_what_a_bigram_says(
    lengths: list[int], window: int, stride_share: float, batch_tokens: int
) -> None:
    model, stride = Bigram(), max(1, int(window * stride_share))
    generator = torch.Generator().manual_seed(sum(lengths))
    documents = [(torch.randint(0, 50, (n,), generator=generator).tolist(), n) for n in lengths]
    score = bits_per_byte(model, documents, window, stride, batch_tokens, CPU)
    exact = sum(float(model.table[a, b]) for ids, _ in documents for a, b in pairwise(ids))
    assert score.tokens == sum(n - 1 for n in lengths) and score.n_bytes == sum(lengths)
    assert score.bits == pytest.approx(exact / math.log(2), rel=1e-4)
    assert model.longest <= window


def test_context_is_at_least_window_less_stride() -> None:
    ids = list(range(1, 22))
    score = bits_per_byte(Position(), [(ids, 20)], window=8, stride=4, batch_tokens=8, device=CPU)
    # The first window scores contexts 1..8; each later one scores four more, with contexts 5..8.
    assert score.bits * math.log(2) == pytest.approx(sum(range(1, 9)) + 3 * (5 + 6 + 7 + 8))


def test_progress_reaches_the_end() -> None:
    seen: list[tuple[int, int]] = []
    bits_per_byte(Bigram(), [([1] * 30, 30)], 8, 4, 8, CPU, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 7
