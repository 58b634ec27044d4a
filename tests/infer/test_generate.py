"""Continuous batching: the same texts as one at a time, whatever the cache, the order and the neighbours."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.nn import functional as F

from shoestring.infer.arena import BLOCK, Arena, Decode, Prefill, causal
from shoestring.infer.decode import generate
from shoestring.infer.segments import Span
from shoestring.infer.streams import Continuous, Made, Wanted, draw
from shoestring.models.moe_lm.model import MoeLM
from shoestring.models.moe_lm.serving import ServedMoe
from shoestring.models.ragged import Attend, LayerShape, RaggedShape
from tests.infer.tiny import tiny_moe

CPU = torch.device("cpu")
CONFIG = tiny_moe(96, 512, final_norm_init=4.0)
STOP = 5


def wishes(count: int, temperature: float = 0.0) -> list[Wanted]:
    """Prompts and bounds of very uneven length."""
    random = np.random.default_rng(7)
    return [
        Wanted(
            key=key,
            prompt=tuple(random.integers(0, 96, int(random.integers(1, 90))).tolist()),
            tokens=int(min(150, 4 + random.pareto(1.0) * 20)),
            temperature=temperature,
            top_p=0.9 if key % 2 else 1.0,
            seed=key * 31,
        )
        for key in range(count)
    ]


def all_of(engine: Continuous, wanted: list[Wanted]) -> dict[int, Made]:
    """Every text, asked for as soon as there is room."""
    left = list(reversed(wanted))
    made: dict[int, Made] = {}
    for _ in range(100_000):
        while left and engine.room:
            engine.add(left.pop())
        for one in engine.step():
            assert one.key not in made
            made[one.key] = one
        if not left and not engine.busy:
            return made
    raise AssertionError("the generator does not come to an end")


def test_greedy_texts_are_those_of_one_at_a_time() -> None:
    wanted = wishes(16)
    model = MoeLM(CONFIG, seed=1)
    with torch.no_grad():
        alone = {
            one.key: tuple(generate(model, list(one.prompt), one.tokens, 0.0, 1.0, 0, -1, CPU))
            for one in wanted
        }
    lasts = Counter(token for text in alone.values() for token in set(text[5:]))
    stop = lasts.most_common(1)[0][0]
    alone = {key: text[: text.index(stop)] if stop in text else text for key, text in alone.items()}
    assert sum(len(alone[one.key]) < one.tokens for one in wanted) > 2, "the stop token ends hardly a text"
    served = ServedMoe(MoeLM(CONFIG, seed=1))
    counts: Counter[str] = Counter()
    for cache_tokens, sequences in ((4096, 8), (512, 24), (256, 24)):
        engine = Continuous(served, cache_tokens, sequences, [stop])
        made = all_of(engine, wanted)
        assert {key: one.tokens for key, one in made.items()} == alone
        assert not any(one.error for one in made.values())
        counts += engine.counts
    assert all(counts[how] for how in ("extend", "append", "wait", "evict")), counts


def test_a_draw_depends_on_its_seed_and_prompt_alone() -> None:
    wanted = wishes(12, temperature=0.9)
    served = ServedMoe(MoeLM(CONFIG, seed=1))
    first = all_of(Continuous(served, 4096, 16, [STOP]), wanted)
    again = all_of(Continuous(served, 320, 5, [STOP]), wanted[::-1])
    assert first == again
    other = all_of(
        Continuous(served, 4096, 16, [STOP]),
        [Wanted(one.key, one.prompt, one.tokens, 0.9, one.top_p, one.seed + 1) for one in wanted],
    )
    assert first != other


class Scripted:
    """Says that the next token is the last one plus one; attention is checked on the way."""

    def __init__(self, poison: int = -1) -> None:
        self._poison = poison
        self.shape = RaggedShape((LayerShape(1, 2, 2),), 1000, 200, torch.float32, CPU)

    def ragged(self, tokens_N: Tensor, positions_N: Tensor, last_B: Tensor, attend: Attend) -> Tensor:
        # Keys are alike, so attention gives the mean of the values: of the tokens of a sequence up to here.
        k = torch.ones(len(tokens_N), 1, 2)
        v = tokens_N.float()[:, None, None].expand(-1, 1, 2)
        mean = attend(0, k, k, v, 1.0)[:, 0, 0]
        start = tokens_N - positions_N  # tokens count up by one from the first of the sequence
        assert torch.allclose(mean, start + positions_N / 2.0, atol=1e-3)
        logits = F.one_hot(tokens_N[last_B] + 1, 200).float()
        logits[tokens_N[last_B] == self._poison] = float("nan")
        return logits


def test_what_can_never_fit_is_told_and_the_others_go_on() -> None:
    engine = Continuous(Scripted(), 128, 4, [50])
    for key, (prompt, tokens) in enumerate(
        [((), 3), ((1,), 2000), ((1,), 200), ((300,), 2), ((48,), 9), ((3,), 0)]
    ):
        engine.add(Wanted(key, prompt, tokens))
    made = {one.key: one for _ in range(5) for one in engine.step()}
    assert [key for key in made if not made[key].error] == [5, 4]
    assert made[4].tokens == (49,) and made[5].tokens == ()
    assert "empty" in made[0].error and "1000 positions" in made[1].error
    assert "cache's 128" in made[2].error and "not among" in made[3].error


def test_scores_that_are_no_numbers_fail_their_text_alone() -> None:
    engine = Continuous(Scripted(poison=20), 256, 4, [])
    made = all_of(
        engine, [Wanted(key, tuple(range(start, start + 3)), 12) for key, start in enumerate((1, 10, 60))]
    )
    assert "NaN" in made[1].error and not made[1].tokens
    assert made[0].tokens == tuple(range(4, 16)) and made[2].tokens == tuple(range(63, 75))


def test_a_long_text_is_not_held_up_by_many_short_ones() -> None:
    engine = Continuous(Scripted(), 4 * BLOCK, 8, [])
    wanted = [Wanted(0, (1,), 100), *(Wanted(key, (1,), 20) for key in range(1, 60))]
    order = list(all_of(engine, wanted))
    assert len(order) == 60
    assert order.index(0) < 40, "the long text came last"


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 66)), min_size=1, max_size=10),
    blocks=st.integers(4, 9),
    sequences=st.integers(1, 6),
)
def test_everybody_gets_through(sizes: list[tuple[int, int]], blocks: int, sequences: int) -> None:
    engine = Continuous(Scripted(), blocks * BLOCK, sequences, [])
    wanted = [Wanted(key, tuple(range(1, 1 + length)), tokens) for key, (length, tokens) in enumerate(sizes)]
    made = all_of(engine, wanted)
    for one in wanted:
        length = len(one.prompt)
        assert made[one.key].tokens == tuple(range(1 + length, 1 + length + one.tokens))


@pytest.mark.parametrize("rows", [1, 3])
def test_attention_in_blocks_is_attention(rows: int) -> None:
    torch.manual_seed(0)
    shape = RaggedShape((LayerShape(2, 8, 6),), 500, 10, torch.float32, CPU)
    lengths, heads = [33, 1, 64, 100, 7], 2 * rows
    # Far apart, so that blocks are gathered, and close together, so that they are viewed with gaps between.
    for starts in ([2, 5, 40, 20, 60], [0, 2, 3, 6, 11]):
        arena = Arena(shape, 64)
        spans = [Span(start, -(-length // BLOCK)) for start, length in zip(starts, lengths, strict=True)]
        whole = [(torch.randn(n, heads, 8), torch.randn(n, 2, 8), torch.randn(n, 2, 6)) for n in lengths]
        before = [n - 1 for n in lengths]
        q, k, v = (torch.cat([one[part][:-1] for one in whole]) for part in range(3))
        filled = [place for place, n in enumerate(before) if n]
        Prefill.of(arena, [spans[p] for p in filled], [before[p] for p in filled])(0, q, k, v, 0.3)
        q, k, v = (torch.cat([one[part][-1:] for one in whole]) for part in range(3))
        found = Decode.of(arena, spans, lengths)(0, q, k, v, 0.3)
        wanted = torch.cat([causal(*one, 0.3)[-1:] for one in whole])
        assert torch.allclose(found, wanted, atol=1e-5)


def test_only_the_nucleus_is_drawn_from() -> None:
    logits = torch.tensor([[0.05, 0.3, 0.5, 0.15]]).log().repeat(400, 1)
    uniform = np.random.default_rng(0).random(400).tolist()
    assert set(draw(logits, [1.0] * 400, [0.79] * 400, uniform)) == {1, 2}
    assert set(draw(logits, [1.0] * 400, [0.01] * 400, uniform)) == {2}
    drawn = draw(logits, [1.0] * 400, [1.0] * 400, uniform)
    assert np.bincount(drawn, minlength=4) / 400 == pytest.approx([0.05, 0.3, 0.5, 0.15], abs=0.08)
    assert draw(logits[:2], [1.0] * 2, [1.0, 0.79], [0.999999, 0.999999]) == [3, 1]
