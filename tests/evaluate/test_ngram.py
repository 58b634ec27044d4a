"""The n-gram yardstick: real probabilities, equal to a slow count by hand, and better with memory."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shoestring.base.errors import DataError
from shoestring.data.packing import pack
from shoestring.data.tokenizer import TextTokenizer, train_tokenizer
from shoestring.data.tokens import PackedTokens
from shoestring.evaluate.ngram import NgramConfig, NgramModel, ngram_score
from tests.data.files import small_tokenizer, write, write_texts

START, END, WORDS = 0, 1, 30


def documents(seed: int, count: int, length: int = 60) -> list[NDArray[np.uint16]]:
    """Texts of a random Markov chain; each also likes a few words of its own."""
    rng = np.random.default_rng(seed)
    chain = np.random.default_rng(7).dirichlet(np.full(WORDS - 2, 0.05), WORDS)
    result = []
    for _ in range(count):
        own = rng.integers(2, WORDS, 2)
        tokens = [START]
        for _ in range(int(rng.integers(2, length))):
            liked = rng.random() < 0.3
            tokens.append(int(rng.choice(own) if liked else 2 + rng.choice(WORDS - 2, p=chain[tokens[-1]])))
        result.append(np.array([*tokens, END], np.uint16))
    return result


TRAIN, HELDOUT = documents(1, 400), documents(2, 40)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("cache_order", [-1, 0, 2, 4])
def test_probabilities_sum_to_one_over_the_vocabulary(order: int, cache_order: int) -> None:
    model = NgramModel.train(TRAIN, WORDS, NgramConfig(order=order, cache_order=cache_order))
    rng = np.random.default_rng(order)
    for _ in range(6):
        text = HELDOUT[int(rng.integers(len(HELDOUT)))]
        history = text[: int(rng.integers(1, len(text)))]
        # Every token but the start, which never follows anything, as the next one.
        candidates = [np.append(history, word) for word in range(1, WORDS)]
        for nats in model.score(candidates):
            last = nats.reshape(WORDS - 1, len(history))[:, -1]
            assert math.fsum(np.exp(-last)) == pytest.approx(1, abs=1e-6)


def slow_kneser_ney(texts: list[NDArray[np.uint16]], order: int) -> dict[int, Counter[tuple[int, ...]]]:
    """Adjusted counts by length, with plain tuples: raw at the top, numbers of left neighbours below."""
    counts: dict[int, Counter[tuple[int, ...]]] = {order: Counter()}
    for text in texts:
        padded = [START] * (order - 1) + text[1:].tolist()
        for i in range(order - 1, len(padded)):
            counts[order][tuple(padded[i - order + 1 : i + 1])] += 1
    for length in range(order - 1, 0, -1):
        counts[length] = Counter(gram[1:] for gram in counts[length + 1])
    return counts


def slow_chance(
    counts: dict[int, Counter[tuple[int, ...]]], history: list[int], word: int, order: int
) -> float:
    chance = 1 / (WORDS - 1)
    for length in range(1, order + 1):
        table = counts[length]
        n = Counter(table.values())
        cut = [0.0, 0.5, 0.75, 0.75]
        if min(n[1], n[2], n[3], n[4]) > 0:
            y = n[1] / (n[1] + 2 * n[2])
            cut = [0.0, *(min(max(c - (c + 1) * y * n[c + 1] / n[c], 0), c) for c in (1, 2, 3))]
        context = tuple(history[len(history) - length + 1 :])
        follow = {gram[-1]: count for gram, count in table.items() if gram[:-1] == context}
        if not follow:
            break
        total = sum(follow.values())
        left = sum(cut[min(count, 3)] for count in follow.values()) / total
        own = follow[word] - cut[min(follow[word], 3)] if word in follow else 0.0
        chance = own / total + left * chance
    return chance


def test_it_is_kneser_ney_as_one_would_count_it_by_hand() -> None:
    order = 3
    model = NgramModel.train(TRAIN, WORDS, NgramConfig(order=order, cache_order=-1, tune_tokens=0))
    counts = slow_kneser_ney(TRAIN, order)
    text = HELDOUT[3]
    _, nats = model.score([text])
    padded = [START] * (order - 1) + text[1:].tolist()
    slow = [
        -math.log(slow_chance(counts, padded[:i], padded[i], order)) for i in range(order - 1, len(padded))
    ]
    assert nats == pytest.approx(np.array(slow), rel=1e-5)


def test_each_document_is_scored_alone() -> None:
    model = NgramModel.train(TRAIN, WORDS, NgramConfig(order=4))
    together = model.score(HELDOUT)
    alone = [model.score([text]) for text in HELDOUT]
    for part in (0, 1):
        assert np.concatenate([nats[part] for nats in alone]) == pytest.approx(together[part])
    assert len(together[0]) == sum(len(text) - 1 for text in HELDOUT)


def test_longer_contexts_and_a_memory_make_it_stronger() -> None:
    def bits(order: int, cache_order: int) -> float:
        model = NgramModel.train(TRAIN, WORDS, NgramConfig(order=order, cache_order=cache_order))
        return float(model.score(HELDOUT)[0].sum() / math.log(2))

    tokens = sum(len(text) - 1 for text in HELDOUT)
    assert bits(3, 2) < 0.97 * bits(3, -1) < 0.95 * bits(1, -1) < 0.95 * tokens * math.log2(WORDS)


def test_without_a_memory_both_scores_are_the_same() -> None:
    mixed, static = NgramModel.train(TRAIN, WORDS, NgramConfig(cache_order=-1)).score(HELDOUT)
    assert (mixed == static).all()


def test_a_document_that_repeats_itself_costs_little_the_second_time() -> None:
    rng = np.random.default_rng(5)
    once = rng.integers(2, WORDS, 60)
    text = np.concatenate([[START], once, once, [END]]).astype(np.uint16)
    model = NgramModel.train(TRAIN, WORDS, NgramConfig(order=3))
    nats, static = model.score([text])
    assert nats[63:120].sum() < 0.6 * static[63:120].sum()


def test_one_tiny_document_is_enough_to_train() -> None:
    text = np.array([START, 5, END], np.uint16)
    nats, _ = NgramModel.train([text], WORDS, NgramConfig()).score([text, np.array([START, 6, 7, END])])
    assert np.isfinite(nats).all() and nats[0] < nats[2]


@pytest.fixture
def tokenizer() -> TextTokenizer:
    return small_tokenizer()


def test_packed_directories_are_scored_in_bits_per_byte(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    files = write_texts(tmp_path / "in", 30)
    pack(files[:25], "text", tokenizer, tmp_path / "train")
    pack(files[25:], "text", tokenizer, tmp_path / "heldout")
    train, heldout = PackedTokens(tmp_path / "train"), PackedTokens(tmp_path / "heldout")
    score = ngram_score(train, heldout, NgramConfig(order=4))
    assert score.n_bytes == sum(file.size_bytes for file in files[25:])
    assert score.tokens == sum(len(ids) - 1 for ids, _ in heldout.documents())
    assert 0 < score.bits_per_byte < 1 and score.bits_per_byte == score.bits / score.n_bytes
    assert score.static_bits_per_byte == score.static_bits / score.n_bytes != score.bits_per_byte
    few = ngram_score(train, heldout, NgramConfig(order=4, max_tokens=train.index.tokens // 3))
    assert few.train_tokens < 0.6 * score.train_tokens and few.bits != score.bits


def test_tokens_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    file = write(tmp_path / "a.txt", b"some text of its own\n" * 9)
    other = train_tokenizer([b"some other text"] * 9, 262)
    pack([file], "text", tokenizer, tmp_path / "train")
    pack([file], "text", other, tmp_path / "heldout")
    with pytest.raises(DataError, match="different tokenizers"):
        ngram_score(PackedTokens(tmp_path / "train"), PackedTokens(tmp_path / "heldout"), NgramConfig())
