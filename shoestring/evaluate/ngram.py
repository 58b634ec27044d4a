"""A strong n-gram yardstick: Kneser-Ney over the model's own tokens, and a memory of the document.

The static part is interpolated modified Kneser-Ney (Chen and Goodman, "An empirical study of smoothing
techniques for language modeling", 1999, section 4.1.6). On top of it lies, for each document alone, a
Pitman-Yor model of what the document has said so far (Teh, "A hierarchical Bayesian language model
based on Pitman-Yor processes", 2006, equation 24, one table a word), from its single tokens up to its
long contexts; each order falls back on the one below, the lowest on the static part. How strongly is
fitted on training documents that the static part has not counted. Both parts give probabilities that
sum to one over the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import DataError
from shoestring.data.tokens import PackedTokens

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Document = NDArray[np.unsignedinteger]

_STRENGTHS = tuple(float(2**power) for power in range(-4, 21))
_DISCOUNTS = tuple(step / 20 for step in range(20))
_ROUNDS = 2
_ENOUGH = 200


class NgramConfig(Config):
    """How strong the yardstick is.

    Attributes:
        order: tokens of the longest n-gram of the static part.
        cache_order: tokens of the longest context that is remembered of a document; -1: no memory.
        max_tokens: the static part counts no more training tokens than that, evenly spread.
        tune_tokens: so many training tokens are kept out of the counts, to fit the memory's strength on.
    """

    order: int = Field(default=8, ge=1)
    cache_order: int = Field(default=8, ge=-1)
    max_tokens: int = Field(default=10_000_000, ge=1)
    tune_tokens: int = Field(default=100_000, ge=0)


@dataclass(frozen=True)
class NgramScore:
    """What the yardstick says of the held-out documents, each alone from its start.

    Attributes:
        bits: with the memory of the document; `static_bits`: without.
        n_bytes, tokens: of the held-out documents.
        train_tokens: that were counted.
    """

    bits: float
    static_bits: float
    n_bytes: int
    tokens: int
    train_tokens: int

    @property
    def bits_per_byte(self) -> float:
        """The figure to compare with."""
        return self.bits / self.n_bytes

    @property
    def static_bits_per_byte(self) -> float:
        """Kneser-Ney alone."""
        return self.static_bits / self.n_bytes


def ngram_score(
    train: PackedTokens, heldout: PackedTokens, config: NgramConfig, only: frozenset[int] | None = None
) -> NgramScore:
    """Train on one packed directory and score the documents of another.

    Args:
        only: numbers of the documents to score; all where not given.

    Raises:
        DataError: when either holds no text, or they come from different tokenizers.
    """
    if train.index.vocab_size != heldout.index.vocab_size:
        raise DataError(
            "training and held-out tokens come from different tokenizers", "pack them with the same settings"
        )
    every = math.ceil(train.index.tokens / config.max_tokens)
    counted = [tokens for number, (_, tokens, _) in enumerate(train.arrays()) if number % every == 0]
    scored = [item for number, item in enumerate(heldout.arrays()) if only is None or number in only]
    n_bytes = sum(size for _, _, size in scored)
    if not counted or not n_bytes:
        raise DataError("there is no text to count or to score", "give files that hold text")
    model = NgramModel.train(counted, train.index.vocab_size, config)
    nats, static_nats = model.score([tokens for _, tokens, _ in scored])
    return NgramScore(
        float(nats.sum() / math.log(2)), float(static_nats.sum() / math.log(2)), n_bytes, len(nats),
        model.train_tokens,
    )  # fmt: skip


class NgramModel:
    """Static counts and the strength of the memory; made by `train`."""

    def __init__(
        self, levels: list[_Level], memory: _Memory, start_id: int, vocab_size: int, train_tokens: int
    ) -> None:
        self._levels = levels
        self._memory = memory
        self._start_id = start_id
        self._vocab_size = vocab_size
        self.train_tokens = train_tokens

    @classmethod
    def train(cls, documents: Sequence[Document], vocab_size: int, config: NgramConfig) -> NgramModel:
        """Count, and fit the memory's strength.

        Args:
            documents: token ids [tokens], each beginning with the same start token, that never comes again.
            vocab_size: ids are below it.
        """
        start_id = int(documents[0][0])
        kept, tuned = _apart(documents, config.tune_tokens)
        levels = _count(_Stream(kept, start_id, config.order - 1), vocab_size, config.order)
        memory = _Memory.default(config.order, config.cache_order)
        model = cls(levels, memory, start_id, vocab_size, sum(len(d) - 1 for d in kept))
        if tuned and config.cache_order >= 0:
            stream = _Stream(tuned, start_id, model._history)
            chances, matched = model._static(stream)
            memory.fit(chances, matched, _remembered(stream, vocab_size, config.cache_order))
        return model

    def score(self, documents: Sequence[Document]) -> tuple[Floats, Floats]:
        """(nats with the memory, nats without) of all tokens but each document's first, [tokens] each."""
        stream = _Stream(documents, self._start_id, self._history)
        chances, matched = self._static(stream)
        remembered = _remembered(stream, self._vocab_size, self._memory.order)
        return -np.log(self._memory.mixed(chances, matched, remembered)), -np.log(chances)

    @property
    def _history(self) -> int:
        return len(self._levels) - 1

    def _static(self, stream: _Stream) -> tuple[Floats, Ints]:
        """Kneser-Ney: (probability of each predicted token, tokens of its longest known context)."""
        # The start token is never predicted, so the uniform floor is over all others.
        chance = np.full(len(stream.tokens), 1 / (self._vocab_size - 1))
        matched = np.zeros(len(stream.tokens), np.int64)
        context: Ints = np.zeros(len(stream.tokens), np.int64)
        for number, level in enumerate(self._levels):
            known = context >= 0
            gram = level.find(np.where(known, context * self._vocab_size + stream.tokens, -1))
            own = np.where(gram >= 0, level.chance[gram], 0.0)
            chance = np.where(known, own + level.rest[context] * chance, chance)
            matched[known] = number
            context = np.concatenate([[-1], gram[:-1]])
        return chance[stream.predicted], matched[stream.predicted]


class _Stream:
    """Documents one after another, each with as many more start tokens before it as contexts reach back."""

    def __init__(self, documents: Sequence[Document], start_id: int, history: int) -> None:
        pad = np.full(max(history, 1), start_id, np.int64)
        pieces = [piece for tokens in documents for piece in (pad, tokens[1:].astype(np.int64))]
        self.tokens: Ints = np.concatenate(pieces)
        self.predicted: NDArray[np.bool_] = self.tokens != start_id
        lengths = [len(pad) + len(tokens) - 1 for tokens in documents]
        self.document: Ints = np.repeat(np.arange(len(documents)), lengths)


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order.

    Attributes:
        keys: sorted; number of the context among the n-grams one shorter, times vocabulary, plus token.
        chance: of each key, the discounted share of its context's mass.
        rest: of each context (an n-gram one shorter), the mass left to the order below.
    """

    keys: Ints
    chance: NDArray[np.float32]
    rest: NDArray[np.float32]

    def find(self, keys: Ints) -> Ints:
        """Number of each key, or -1."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)


def _count(stream: _Stream, vocab_size: int, order: int) -> list[_Level]:
    levels: list[_Level] = []
    last_tokens, contexts = 0, 1
    gram: Ints = np.zeros(len(stream.tokens), np.int64)
    keys: Ints = np.zeros(0, np.int64)
    for number in range(1, order + 1):
        shorter = gram
        context = np.concatenate([[0], shorter[:-1]])
        longer, first, gram = np.unique(
            context * vocab_size + stream.tokens, return_index=True, return_inverse=True
        )
        real = stream.predicted[first]
        if number > 1:
            # Below the highest order, what counts is in how many different contexts an n-gram stands.
            counts = np.bincount(shorter[first[real]], minlength=len(keys))
            levels.append(_level(keys, counts, contexts, vocab_size))
            contexts = last_tokens
        keys, last_tokens = longer, len(longer)
    counts = np.bincount(gram[stream.predicted], minlength=len(keys))
    levels.append(_level(keys, counts, contexts, vocab_size))
    return levels


def _level(keys: Ints, counts: Ints, contexts: int, vocab_size: int) -> _Level:
    discounts = _discounts(np.bincount(np.minimum(counts, 5), minlength=6))
    context = keys // vocab_size
    discount = discounts[np.minimum(counts, 3)]
    total = np.bincount(context, counts, contexts)
    left = np.bincount(context, discount, contexts)
    seen = total > 0
    rest = np.ones(contexts)
    rest[seen] = left[seen] / total[seen]
    total[~seen] = 1
    chance = (counts - discount) / total[context]
    return _Level(keys, chance.astype(np.float32), rest.astype(np.float32))


def _discounts(n: Ints) -> Floats:
    """Discounts of counts 0, 1, 2 and from 3 on, from how many n-grams have the counts 1 to 4."""
    if min(n[1:5]) == 0:  # too little text to estimate them
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n[1] / (n[1] + 2 * n[2])
    found = [count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3)]
    return np.array([0.0, *(min(max(d, 0.0), count) for count, d in enumerate(found, start=1))])


@dataclass(frozen=True)
class _Seen:
    """For one length of context, of each predicted token, what its document held before it.

    Attributes:
        pair: how often this token followed this context.
        context: how often anything did; distinct: how many different tokens did.
    """

    pair: Floats
    context: Floats
    distinct: Floats


def _remembered(stream: _Stream, vocab_size: int, order: int) -> list[_Seen]:
    result: list[_Seen] = []
    gram = stream.document
    chosen = np.flatnonzero(stream.predicted)
    for _ in range(order + 1):
        context = np.concatenate([[0], gram[:-1]]) if result else gram
        _, gram = np.unique(context * vocab_size + stream.tokens, return_inverse=True)
        here, pairs = context[chosen], gram[chosen]
        ones = np.ones(len(chosen))
        pair = _before(pairs, ones)
        result.append(_Seen(pair, _before(here, ones), _before(here, (pair == 0).astype(float))))
    return result


def _before(groups: Ints, values: Floats) -> Floats:
    """Of each element, the sum of the values of the earlier elements of its group."""
    order = np.argsort(groups, kind="stable")
    ordered, sums = groups[order], np.cumsum(values[order]) - values[order]
    new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
    start = np.maximum.accumulate(np.where(new, np.arange(len(groups)), 0))
    result = np.empty(len(groups))
    result[order] = sums - sums[start]
    return result


class _Memory:
    """Strength [order + 1, matched] and discount [order + 1] of each order of the document's memory.

    The strength depends on how long a context the static part knows: the better it knows, the less
    the document's own short contexts may say.
    """

    def __init__(self, strength: Floats, discount: Floats) -> None:
        self._strength = strength
        self._discount = discount
        self.order = len(discount) - 1

    @classmethod
    def default(cls, matches: int, order: int) -> _Memory:
        """What serves where there is too little text to fit it."""
        falling = [2.0 ** max(10 - 4 * length, 0) for length in range(order + 1)]
        return cls(np.tile(np.array(falling).reshape(-1, 1), (1, matches)), np.full(order + 1, 0.5))

    def mixed(self, chances: Floats, matched: Ints, seen: list[_Seen]) -> Floats:
        """The static chances [tokens], after each order of the memory in turn."""
        for order in range(self.order + 1):
            chances = self._step(order, chances, matched, seen[order])
        return chances

    def fit(self, chances: Floats, matched: Ints, seen: list[_Seen]) -> None:
        """Choose each number in turn as the one that gives these tokens the highest probability."""
        for _ in range(_ROUNDS):
            below = chances
            for order in range(self.order + 1):
                self._fit_order(order, below, matched, seen)
                below = self._step(order, below, matched, seen[order])

    def _fit_order(self, order: int, below: Floats, matched: Ints, seen: list[_Seen]) -> None:
        # A token without history here keeps its chance whatever is chosen: leave it out.
        active = seen[order].context > 0
        if not active.any():
            return
        matched = matched[active]
        above = [_Seen(s.pair[active], s.context[active], s.distinct[active]) for s in seen]

        def nats() -> Floats:
            value = below[active]
            for number in range(order, self.order + 1):
                value = self._step(number, value, matched, above[number])
            return -np.log(value)

        tried = []
        for discount in _DISCOUNTS:
            self._discount[order] = discount
            tried.append(nats().sum())
        self._discount[order] = _DISCOUNTS[int(np.argmin(tried))]
        by_match = []
        for strength in _STRENGTHS:
            self._strength[order] = strength
            by_match.append(np.bincount(matched, nats(), self._strength.shape[1]))
        table = np.array(by_match)
        # Where too few tokens would decide for a length of match, all lengths together do.
        few = np.bincount(matched, minlength=table.shape[1]) < _ENOUGH
        choice = np.where(few, table.sum(1).argmin(), table.argmin(0))
        self._strength[order] = np.array(_STRENGTHS)[choice]

    def _step(self, order: int, below: Floats, matched: Ints, seen: _Seen) -> Floats:
        discount = self._discount[order]
        strength = self._strength[order][matched]
        own = np.maximum(seen.pair - discount, 0.0)
        mixed: Floats = (own + (strength + discount * seen.distinct) * below) / (seen.context + strength)
        return mixed


def _apart(documents: Sequence[Document], tune_tokens: int) -> tuple[list[Document], list[Document]]:
    """(to count, to fit on): evenly spread documents of at most `tune_tokens`, and a tenth of all, in sum."""
    total = sum(len(tokens) for tokens in documents)
    wanted = min(tune_tokens, total // 10)
    if not wanted:
        return list(documents), []
    every = max(total // wanted, 2)
    chosen: set[int] = set()
    taken = 0
    for number in range(every // 2, len(documents), every):
        if taken + len(documents[number]) <= wanted:
            chosen.add(number)
            taken += len(documents[number])
    kept = [tokens for number, tokens in enumerate(documents) if number not in chosen]
    return kept, [documents[number] for number in sorted(chosen)]
