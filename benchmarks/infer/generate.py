"""Text generation: continuous batching against transformers' `generate` in static batches.

Same model, same prompts. Prompts and ends are uneven. Random weights never end a text by themselves, so each
row has a bound, drawn from a heavy-tailed distribution, that stands for where the text would end; as ends are
not known beforehand, a static batch goes on until its longest row is through (a stopping criterion ends it
there, so it does no step more). What a row made beyond its end does not count for either side. The peer runs
at several batch sizes, with rows in the order of the source and sorted by the length of their prompts; the
best of these counts. Beside it stands what the peer would do if all ends were known and rows sorted by them,
which no user can have.

    python -m benchmarks.infer.generate [--quick] [--device cuda]

With `--device cuda` the model is larger, and the result has a file of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from benchmarks.common import finish, machine
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


def model_of(size: str) -> Any:
    """A Llama with random weights, fp32: `small` has 2 million parameters, `middle` 10, `large` 90."""
    torch.manual_seed(0)
    width, layers = {"small": (128, 3), "middle": (320, 6), "large": (768, 12)}[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 27 // 10,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
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
        return (input_ids.shape[1] >= self._ends).to(input_ids.device)


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
        ids = torch.zeros((len(chosen), longest), dtype=torch.long, device=model.device)
        mask = torch.zeros_like(ids)
        for place, number in enumerate(chosen):
            prompt = rows[number].prompt
            ids[place, longest - len(prompt) :] = torch.tensor(prompt, device=model.device)
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


@dataclass(frozen=True)
class Setting:
    """Of the peer: rows of a batch, and in which order they come."""

    batch: int
    by_prompt: bool

    @property
    def name(self) -> str:
        """For tables."""
        return (
            f"batch {self.batch}, {'by length of prompt' if self.by_prompt else 'in the order of the source'}"
        )

    def run(self, model: Any, rows: list[Row]) -> Texts:
        """All texts."""
        return static(model, rows, self.batch, _prompt_length if self.by_prompt else None)


def _prompt_length(row: Row) -> int:
    return len(row.prompt)


def measure(quick: bool, device: str = "cpu") -> dict[str, Any]:
    """tokens/s of both, in turns; the texts are compared token by token.

    Only tokens before a row's end count, for both. Returns `generate_vs_static` (of the medians), what it was
    measured with, and every single measurement.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(quick, device)
    finally:
        torch.set_num_threads(threads)


def _measure(quick: bool, device: str) -> dict[str, Any]:
    on_cpu = device == "cpu"
    rows = rows_of(48 if quick else 96 if on_cpu else 1024)
    model = model_of("small" if quick else "middle" if on_cpu else "large").to(device)
    useful = sum(row.tokens for row in rows)
    sequences = 64 if on_cpu else 256
    cache_tokens = sequences * 256
    settings = [
        Setting(batch, by) for batch in _batches(quick, device) for by in (False, True)
    ]
    part = rows if quick else rows[: len(rows) // (2 if on_cpu else 4)]
    chosen = {
        setting.name: sum(row.tokens for row in part) / _timed(setting.run, model, part)[1]
        for setting in settings
    }
    best = max(settings, key=lambda setting: chosen[setting.name])
    rounds: list[dict[str, float]] = []
    differing, counts = 0, {}
    for number in range(3):
        found: dict[str, float] = {}
        texts: dict[str, Texts] = {}
        for arm in ("continuous", "static")[:: 1 if number % 2 == 0 else -1]:
            if arm == "static":
                texts[arm], took_s = _timed(best.run, model, rows)
            else:
                (texts[arm], counts), took_s = _timed(continuous, model, rows, sequences, cache_tokens)
            found[arm] = useful / took_s
        differing += sum(
            one != other for one, other in zip(texts["continuous"], texts["static"], strict=True)
        )
        rounds.append(found)
    _, took_s = _timed(static, model, rows, best.batch, lambda row: row.tokens)
    ours, theirs = ([one[arm] for one in rounds] for arm in ("continuous", "static"))
    return {
        "generate_vs_static": round(statistics.median(ours) / statistics.median(theirs), 3),
        "continuous_tokens_s": round(statistics.median(ours), 1),
        "static_tokens_s": round(statistics.median(theirs), 1),
        "static_ends_known_tokens_s": round(useful / took_s, 1),
        "spread": {
            arm: [round(min(of), 1), round(max(of), 1)]
            for arm, of in (("continuous", ours), ("static", theirs))
        },
        "static_setting": best.name,
        "static_tried_tokens_s": {name: round(pace, 1) for name, pace in chosen.items()},
        "texts_differing": differing,
        "texts_compared": 3 * len(rows),
        "rows": len(rows),
        "tokens": useful,
        "tokens_a_row": [
            min(row.tokens for row in rows),
            statistics.median(row.tokens for row in rows),
            TOKENS[1],
        ],
        "prompt_tokens": sum(len(row.prompt) for row in rows),
        "parameters": sum(one.numel() for one in model.parameters()),
        "sequences": sequences,
        "cache_tokens": cache_tokens,
        "counts": counts,
        "threads": 1,
        "rounds": rounds,
    }


def _batches(quick: bool, device: str) -> tuple[int, ...]:
    if device != "cpu":
        return (64, 128, 256)  # it takes many rows at a time as fast as one
    return (8, 16) if quick else (4, 8, 16, 32)


def _timed(run: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What it returns, and how long it took."""
    began_s = perf_counter()
    found = run(*arguments)
    took_s = perf_counter() - began_s
    print(f"  {getattr(run, '__qualname__', 'run')}: {took_s:.1f} s", file=sys.stderr, flush=True)
    return found, took_s


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    made = measure(given.quick, given.device)
    if given.device == "cpu":
        print(json.dumps({"machine": machine(), **made}, indent=1))
    else:
        keys = ("generate_vs_static", "continuous_tokens_s", "static_tokens_s", "static_ends_known_tokens_s")
        finish("generate_gpu", vars(given), made, {key: made[key] for key in keys})
