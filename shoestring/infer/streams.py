"""Text generation with continuous batching: a sequence that is through makes room for the next at once.

Source: ours; scheduling by token, not by text: Orca, OSDI 2022; segments: Flood, in arXiv 2503.05139.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from shoestring.infer.arena import BLOCK, Arena, Decode, Prefill
from shoestring.infer.segments import Segments
from shoestring.models.ragged import Ragged

_GUESS = 64  # tokens that a text is thought to get, before any is through
_LEARN = 0.05  # weight of a text's length in the running guess


@dataclass(frozen=True)
class Wanted:
    """A text to be made.

    Attributes:
        key: whoever asks knows it by this.
        prompt: token ids, at least one.
        tokens: at most so many are made.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the smallest set of likeliest tokens that holds this much probability.
        seed: the same for the same draws, whatever else is generated beside it.
    """

    key: int
    prompt: tuple[int, ...]
    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """A text that is through: its new token ids without the one that ended it, or what is wrong."""

    key: int
    tokens: tuple[int, ...]
    error: str = ""


@dataclass(eq=False)
class _Sequence:
    """A text in the making."""

    wanted: Wanted
    owner: int
    random: np.random.Generator
    made: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [*self.wanted.prompt, *self.made]

    @property
    def length(self) -> int:
        return len(self.wanted.prompt) + len(self.made)


class Continuous:
    """Many texts at a time from one model.

    Args:
        model: run over ragged batches.
        cache_tokens: that the cache holds, of all texts together.
        sequences: at most so many texts at a time.
        stop: token ids that end a text.
        prefill_tokens: of prompts that are begun between two steps; more of them wait, so that those that
            are under way go on.

    Attributes:
        counts: what became of sequences: `extend`, `append`, `wait`, `evict` (put back to make room for
            others; it goes on from its own tokens later), and `steps`, `step_rows`, `prefills`.
    """

    def __init__(
        self,
        model: Ragged,
        cache_tokens: int,
        sequences: int,
        stop: Iterable[int],
        prefill_tokens: int = 1024,
    ) -> None:
        self._model = model
        self._shape = model.shape
        self._segments = Segments(max(1, cache_tokens // BLOCK))
        self._arena = Arena(self._shape, self._segments.blocks)
        self._sequences = sequences
        self._stop = frozenset(stop)
        self._prefill_tokens = prefill_tokens
        self._queue: deque[_Sequence] = deque()
        self._live: list[_Sequence] = []  # oldest first
        self._refused: list[Made] = []
        self._next_owner = 0
        self._guess = float(_GUESS)
        self._somebody_waits = False
        self.counts: Counter[str] = Counter()

    @property
    def busy(self) -> int:
        """Texts that are asked for and not through."""
        return len(self._queue) + len(self._live) + len(self._refused)

    @property
    def room(self) -> int:
        """Texts that it would begin with soon: with a few in waiting, no place stays empty."""
        return max(0, self._sequences + max(2, self._sequences // 4) - self.busy)

    def add(self, wanted: Wanted) -> None:
        """Ask for a text. One that can never fit is answered with its error by the next `step`."""
        if why := self._unfit(wanted):
            self._refused.append(Made(wanted.key, (), why))
        elif not wanted.tokens:
            self._refused.append(Made(wanted.key, ()))
        else:
            random = np.random.Generator(np.random.Philox(wanted.seed))
            self._queue.append(_Sequence(wanted, self._next_owner, random))
            self._next_owner += 1

    @torch.inference_mode()
    def step(self) -> list[Made]:
        """Begin with what there is room for, then a token more for all under way; returns what is through."""
        through, self._refused = self._refused, []
        if begun := self._admit():
            through += self._prefill(begun)
        able = self._make_room()
        if able:
            through += self._decode(able)
        return through

    def _unfit(self, wanted: Wanted) -> str:
        need = len(wanted.prompt) + wanted.tokens
        words = f"{len(wanted.prompt)} tokens of prompt and {wanted.tokens} new ones are more than the"
        if not wanted.prompt:
            return "the prompt is empty"
        if need > self._shape.positions:
            return f"{words} model's {self._shape.positions} positions"
        if need > self._segments.blocks * BLOCK:
            return f"{words} cache's {self._segments.blocks * BLOCK}"
        if max(wanted.prompt) >= self._shape.vocab_size or min(wanted.prompt) < 0:
            return f"a token of the prompt is not among the model's {self._shape.vocab_size}"
        return ""

    def _wish(self, sequence: _Sequence) -> int:
        """Blocks for what is there and for what it will probably need, never more than it can need."""
        rest = sequence.wanted.tokens - len(sequence.made)
        return _blocks(sequence.length + min(rest, max(BLOCK, int(self._guess) - len(sequence.made))))

    def _admit(self) -> list[_Sequence]:
        """Take from the queue, in order, what there is room for. Nobody begins while somebody under way waits
        for room: else a stream of short texts could hold up a long one for ever."""
        begun: list[_Sequence] = []
        if self._somebody_waits:
            return begun
        tokens = 0
        while self._queue and len(self._live) + len(begun) < self._sequences:
            first = self._queue[0]
            tokens += first.length
            if begun and tokens > self._prefill_tokens:
                break
            if self._segments.take(first.owner, _blocks(first.length + 1), self._wish(first)) is None:
                break
            begun.append(self._queue.popleft())
        self._live += begun
        return begun

    def _prefill(self, begun: Sequence[_Sequence]) -> list[Made]:
        """All tokens of new sequences in one run, one sequence after the other without padding."""
        lengths = [one.length for one in begun]
        attend = Prefill.of(self._arena, [self._segments.span(one.owner) for one in begun], lengths)
        tokens = np.concatenate([one.tokens for one in begun])
        positions = np.concatenate([np.arange(length) for length in lengths])
        self.counts["prefills"] += 1
        logits = self._run(tokens, positions, np.cumsum(lengths) - 1, attend)
        return self._take(begun, logits)

    def _decode(self, able: Sequence[_Sequence]) -> list[Made]:
        lengths = [one.length for one in able]
        attend = Decode.of(self._arena, [self._segments.span(one.owner) for one in able], lengths)
        tokens = np.array([one.made[-1] for one in able])
        self.counts["steps"] += 1
        self.counts["step_rows"] += len(able)
        logits = self._run(tokens, np.array(lengths) - 1, np.arange(len(able)), attend)
        return self._take(able, logits)

    def _run(
        self,
        tokens: np.ndarray[tuple[int], np.dtype[np.int64]],
        positions: np.ndarray[tuple[int], np.dtype[np.int64]],
        last: np.ndarray[tuple[int], np.dtype[np.int64]],
        attend: Prefill | Decode,
    ) -> Tensor:
        device = self._shape.device
        ids, places, ends = (torch.from_numpy(one).to(device) for one in (tokens, positions, last))
        return self._model.ragged(ids, places, ends, attend)

    def _take(self, sequences: Sequence[_Sequence], logits_BV: Tensor) -> list[Made]:
        """A token for each sequence from its scores; those that are through leave."""
        through = []
        for one, token in zip(sequences, choose(logits_BV, sequences), strict=True):
            if token is None:
                self._arena.clear(self._segments.span(one.owner))
                through.append(Made(one.wanted.key, (), "the model's scores are not numbers (NaN)"))
            elif token in self._stop:
                through.append(Made(one.wanted.key, tuple(one.made)))
            else:
                one.made.append(token)
                if len(one.made) < one.wanted.tokens:
                    continue
                through.append(Made(one.wanted.key, tuple(one.made)))
            self._segments.give(one.owner)
            self._live.remove(one)
            self._guess += _LEARN * (len(one.made) - self._guess)
        return through

    def _make_room(self) -> list[_Sequence]:
        """Those that have a slot for their next token, the oldest served first. If nobody has, the youngest
        is put back until somebody has: the oldest alone always fits, so all get through."""
        while self._live:
            able = [one for one in self._live if self._has_slot(one)]
            self._somebody_waits = len(able) < len(self._live)
            if able:
                return able
            youngest = self._live.pop()
            self._segments.give(youngest.owner)
            self._queue.appendleft(youngest)
            self.counts["evict"] += 1
        self._somebody_waits = False
        return []

    def _has_slot(self, one: _Sequence) -> bool:
        need = _blocks(one.length)
        if need <= self._segments.span(one.owner).blocks:
            return True
        growth = self._segments.grow(one.owner, need, max(need, self._wish(one)))
        self.counts[growth.how] += 1
        if growth.how == "append":
            self._arena.move(growth.old, growth.span)
        return growth.how != "wait"


def choose(logits_BV: Tensor, sequences: Sequence[_Sequence]) -> list[int | None]:
    """The next token of each sequence; None where its scores are not numbers."""
    top, likeliest = logits_BV.max(-1)  # NaN is the highest of all
    found: list[int | None] = likeliest.tolist()
    for row in torch.nonzero(~torch.isfinite(top)).flatten().tolist():
        found[row] = None
    drawn = [
        row for row, one in enumerate(sequences) if one.wanted.temperature > 0 and found[row] is not None
    ]
    if drawn:
        wanted = [sequences[row].wanted for row in drawn]
        uniform = [sequences[row].random.random() for row in drawn]
        tokens = draw(
            logits_BV[drawn], [one.temperature for one in wanted], [one.top_p for one in wanted], uniform
        )
        for row, token in zip(drawn, tokens, strict=True):
            found[row] = token
    return found


def draw(
    logits_BV: Tensor, temperature: Sequence[float], top_p: Sequence[float], uniform: Sequence[float]
) -> list[int]:
    """A token a row from its nucleus (arXiv 1904.09751): where the cumulated probability reaches the row's
    number from [0, 1), so that a row's draw depends on nothing but its scores and its number."""
    chances = (logits_BV.double().cpu() / torch.tensor(temperature, dtype=torch.float64)[:, None]).softmax(-1)
    order = torch.arange(chances.shape[-1]).expand_as(chances).contiguous()
    if cut := [row for row, share in enumerate(top_p) if share < 1.0]:
        # Only these rows: a row is summed up in the same order whatever its neighbours ask for.
        ranked, order[cut] = chances[cut].sort(descending=True, stable=True)
        # The token that crosses the bound still belongs to the set: never an empty one.
        before = ranked.cumsum(-1) - ranked
        chances[cut] = ranked * (before < torch.tensor(top_p, dtype=torch.float64)[cut, None])
    reached = chances.cumsum(-1)
    aim = torch.tensor(uniform, dtype=torch.float64)[:, None] * reached[:, -1:]
    place = torch.searchsorted(reached, aim, right=True).clamp_(max=chances.shape[-1] - 1)
    tokens: list[int] = order.gather(-1, place)[:, 0].tolist()
    return tokens


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)
