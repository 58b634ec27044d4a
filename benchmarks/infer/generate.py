"""Text generation: continuous batching against transformers' `generate` in static batches, same model and prompts.

Prompts and ends are uneven. Random weights never end a text by themselves, so each row has a bound, drawn from a
heavy-tailed distribution, that stands for where the text would end; as ends are not known beforehand, a static
batch goes on until its longest row is through (its stopping criterion ends it there, so it does no step more).
What a row made beyond its end does not count for either side. The peer runs at several batch sizes, with rows in
the order of the source and sorted by the length of their prompts; the best of these counts. Beside it stands
what the peer would do if all ends were known and rows sorted by them, which no user can have.

    python -m benchmarks.infer.generate [--quick]
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.common import arguments, machine
from shoestring.infer.hugging import HuggingFaceRagged
from shoestring.infer.streams import Continuous, Wanted

VOCABULARY = 4096
PROMPT = (8, 200)
TOKENS = (16, 256)
SHAPE = 1.1  # of the Pareto distribution of ends: most are short, a few at the bound


@dataclass(frozen=True)
class Row:
    """A prompt and where its text ends."""

    prompt: list[int]
    tokens: int


Texts = list[list[int]]
Order = Callable[[Row], int]


def rows_of(count: int, seed: int = 0) -> list[Row]:
    """Uneven prompts (uniform) with uneven ends (heavy-tailed)."""
    random = np.random.default_rng(seed)
    return [
        Row(
            random.integers(3, VOCABULARY, int(random.integers(PROMPT[0], PROMPT[1] + 1))).tolist(),
            int(min(TOKENS[1], TOKENS[0] * (1 + random.pareto(SHAPE)))),
        )
        for _ in range(count)
    ]


def model_of() -> Any:
    """A Llama with random weights, fp32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
        initializer_range=0.05,
    )
    return LlamaForCausalLM(config).eval()


class _AllThrough(StoppingCriteria):
    """Ends a batch when each of its rows has its tokens."""

    def __init__(self, prompt: int, ends: list[int]) -> None:
        self._ends = torch.tensor(ends) + prompt

    def __call__(self, input_ids: torch.Tensor, scores: Any, **more: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self._ends


def static(model: Any, rows: list[Row], batch: int, order: Order | None) -> Texts:
    """`generate` over batches, padded on the left."""
    model.set_attn_implementation("sdpa")
    numbers = list(range(len(rows)))
    if order is not None:
        numbers.sort(key=lambda number: order(rows[number]))
    texts: Texts = [[] for _ in rows]
    for start in range(0, len(rows), batch):
        chosen = numbers[start : start + batch]
        longest = max(len(rows[number].prompt) for number in chosen)
        ids = torch.zeros((len(chosen), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(chosen):
            prompt = rows[number].prompt
            ids[place, longest - len(prompt) :] = torch.tensor(prompt)
            mask[place, longest - len(prompt) :] = 1
        ends = [rows[number].tokens for number in chosen]
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(ends),
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([_AllThrough(longest, ends)]),
        )
        for place, number in enumerate(chosen):
            texts[number] = out[place, longest : longest + rows[number].tokens].tolist()
    return texts


def continuous(
    model: Any, rows: list[Row], sequences: int, cache_tokens: int
) -> tuple[Texts, dict[str, int]]:
    """Ours, asked for in the order of the source."""
    engine = Continuous(HuggingFaceRagged(model), cache_tokens, sequences, stop=[])
    texts: Texts = [[] for _ in rows]
    asked = 0
    while asked < len(rows) or engine.busy:
        while asked < len(rows) and engine.room:
            engine.add(Wanted(asked, tuple(rows[asked].prompt), rows[asked].tokens))
            asked += 1
        for made in engine.step():
            texts[made.key] = list(made.tokens)
    return texts, dict(engine.counts)
