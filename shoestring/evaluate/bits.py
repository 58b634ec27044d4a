"""Bits per byte of a language model on whole documents, each alone from its start (source: ours)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Scorable(Protocol):
    """A model that scores next tokens."""

    def token_nll(self, tokens_BT1: Tensor) -> Tensor:
        """[B, T + 1] int64 -> [B, T] nats."""
        ...


@dataclass(frozen=True)
class BitsPerByte:
    """What was scored: `bits / n_bytes` is the figure."""

    bits: float
    n_bytes: int
    tokens: int

    @property
    def value(self) -> float:
        """Bits per byte."""
        return self.bits / self.n_bytes


@dataclass(frozen=True)
class _Window:
    """Tokens [start, stop] of a document; the last `fresh` predictions count."""

    tokens: list[int]
    fresh: int


def bits_per_byte(
    model: Scorable, documents: Iterable[tuple[list[int], int]], window: int, stride: int, batch_tokens: int,
    device: torch.device, on_progress: Callable[[int, int], None] | None = None,
) -> BitsPerByte:
    """Score every token of every document exactly once, with as much context as the window gives.

    A document's first window starts at its beginning; each later one moves on by `stride` and counts
    only what is new, so a token sees at least `window - stride` tokens before it.

    Args:
        documents: (token ids, starting with the token that opens a document; bytes of its text).
        window: predictions of one forward pass over a sequence.
        stride: in 1..window.
        batch_tokens: upper bound on tokens in one forward pass.
        on_progress: called with (windows done, windows in all).
    """
    windows, n_bytes, tokens = [], 0, 0
    for ids, size in documents:
        found = list(_windows(ids, window, stride))
        windows += found
        n_bytes += size
        tokens += sum(w.fresh for w in found)
    windows.sort(key=lambda w: len(w.tokens), reverse=True)
    nats, done = 0.0, 0
    for batch in _batches(windows, batch_tokens):
        nats += _score(model, batch, device)
        done += len(batch)
        if on_progress is not None:
            on_progress(done, len(windows))
    return BitsPerByte(nats / math.log(2), n_bytes, tokens)


def _windows(ids: list[int], window: int, stride: int) -> Iterator[_Window]:
    last = len(ids) - 1
    scored = 0
    while scored < last:
        stop = min(last, window if scored == 0 else scored + stride)
        start = max(0, stop - window)
        yield _Window(ids[start : stop + 1], stop - scored)
        scored = stop


def _batches(windows: list[_Window], batch_tokens: int) -> Iterator[list[_Window]]:
    at = 0
    while at < len(windows):
        count = max(1, batch_tokens // len(windows[at].tokens))
        yield windows[at : at + count]
        at += count


def _score(model: Scorable, batch: list[_Window], device: torch.device) -> float:
    longest = len(batch[0].tokens)
    # Padding on the right cannot change what a causal model says of the tokens before it.
    padded = torch.zeros(len(batch), longest, dtype=torch.int64)
    counted = torch.zeros(len(batch), longest - 1, dtype=torch.bool)
    for row, window in enumerate(batch):
        length = len(window.tokens)
        padded[row, :length] = torch.tensor(window.tokens)
        counted[row, length - 1 - window.fresh : length - 1] = True
    nll = model.token_nll(padded.to(device)).cpu()
    return float(nll[counted].double().sum())
