"""A stage that goes on with texts, many at a time (source: ours).

A row's text depends on its prompt and the seed, not on which rows are beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import torch
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import ConfigError
from shoestring.cluster.topology import usable_memory_bytes
from shoestring.infer.arena import BLOCK
from shoestring.infer.batch import Answer, Batch, StageContext
from shoestring.infer.stages.columns import column_of, texts_of
from shoestring.infer.streams import Continuous, Wanted
from shoestring.models.ragged import Ragged, RaggedShape

_USUAL_TOKENS = 512  # of prompt and text together, for which the cache is sized by default
_CPU_SHARE = 0.125  # of the machine's memory that a cache may have by default
_GPU_SHARE = 0.5  # of what is free on the device after the model, for the activations need some


class TextOptions(Config):
    """Options of text generation.

    Attributes:
        prompt: the column to go on from.
        output: the column of the new text; `OUTPUT_tokens` is their number.
        tokens: at most so many new ones.
        tokens_column: a column with each row's own bound, up to `tokens`; empty: none.
        temperature: 0 takes the likeliest token each time.
        top_p: draw from the smallest set of likeliest tokens that holds this much probability.
        seed: absent: the job's.
        sequences: texts under way at a time, of one process.
        cache_tokens: that the key-value cache holds; 0: 512 a sequence, within an eighth of the machine's
            memory, or half of what is free on the GPU.
    """

    prompt: str = "text"
    output: str = "generated"
    tokens: int = Field(default=128, ge=1)
    tokens_column: str = ""
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int | None = None
    sequences: int = Field(default=32, ge=1)
    cache_tokens: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Codec:
    """Texts to token ids and back.

    Attributes:
        encode: a text -> ids, with what has to stand at the start.
        decode: new ids -> text.
        stop: ids that end a text.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    stop: frozenset[int]


@dataclass
class _Ticket:
    """A batch in hand: its rows, how many of them are not through, what is wrong with some, and the texts."""

    rows: int
    left: int
    errors: dict[int, str]
    texts: dict[int, tuple[int, ...]] = field(default_factory=dict)


class TextStream:
    """A stream stage over a generator; see `shoestring.infer.batch.StreamStage`.

    Args:
        model: run over ragged batches.
        codec: its tokenizer.
        options: of the stage.
        context: of the stage.
    """

    def __init__(self, model: Ragged, codec: Codec, options: TextOptions, context: StageContext) -> None:
        self._codec = codec
        self._options = options
        self._seed = context.seed if options.seed is None else options.seed
        tokens = options.cache_tokens or cache_tokens(model.shape, options.sequences, context)
        self._engine = Continuous(model, tokens, options.sequences, codec.stop)
        self._tickets: dict[int, _Ticket] = {}
        self._rows: dict[int, tuple[int, int]] = {}  # key of a text -> (ticket, row)
        self._next_key = 0

    @property
    def room(self) -> int:
        """Rows that it would take now."""
        return self._engine.room

    def take(self, ticket: int, batch: Batch) -> None:
        """Begin with the texts of a batch."""
        options = self._options
        texts, errors = texts_of(batch, options.prompt, "options.prompt")
        bounds, wrong = bounds_of(options, batch)
        errors |= wrong
        # All of them before any is begun: a batch that the tokenizer fails on leaves nothing behind.
        prompts = {
            row: tuple(self._codec.encode(text)) for row, text in enumerate(texts) if row not in errors
        }
        self._tickets[ticket] = _Ticket(len(batch), len(prompts), errors)
        for row, prompt in prompts.items():
            self._rows[self._next_key] = ticket, row
            self._engine.add(
                Wanted(
                    key=self._next_key,
                    prompt=prompt,
                    tokens=bounds[row],
                    temperature=options.temperature,
                    top_p=options.top_p,
                    seed=seed_of(self._seed, texts[row]),
                )
            )
            self._next_key += 1

    def work(self) -> list[tuple[int, Answer]]:
        """A token more for all texts under way; (ticket, answer) of each batch that is through."""
        for made in self._engine.step():
            ticket, row = self._rows.pop(made.key)
            held = self._tickets[ticket]
            held.left -= 1
            if made.error:
                held.errors[row] = made.error
            else:
                held.texts[row] = made.tokens
        through = [ticket for ticket, held in self._tickets.items() if not held.left]
        return [(ticket, self._answer(self._tickets.pop(ticket))) for ticket in through]

    def close(self) -> None:
        """Let the model and its cache go."""
        del self._engine

    def _answer(self, held: _Ticket) -> Answer:
        return text_answer(self._options, self._codec, held.texts, held.errors, held.rows)


def bounds_of(options: TextOptions, batch: Batch) -> tuple[list[int], dict[int, str]]:
    """How many tokens each row gets at most, and what is wrong with those that do not say it well."""
    bounds = [options.tokens] * len(batch)
    errors: dict[int, str] = {}
    if not options.tokens_column:
        return bounds, errors
    for row, value in enumerate(column_of(batch, options.tokens_column, "options.tokens_column")):
        try:
            # A column of numbers with gaps comes with NaN in them.
            if value is not None and value == value:
                bounds[row] = max(0, min(options.tokens, int(value)))
        except (TypeError, ValueError, OverflowError):  # the last: infinity
            errors[row] = f"{options.tokens_column} is {value!r}, not a number of tokens"
    return bounds, errors


def text_answer(
    options: TextOptions, codec: Codec, made: Mapping[int, Sequence[int]], errors: dict[int, str], rows: int
) -> Answer:
    """The columns of text generation.

    Args:
        made: row -> its new token ids; rows with an error have none.
    """
    written = [codec.decode(made[row]) if row in made else None for row in range(rows)]
    counts = [len(made[row]) if row in made else None for row in range(rows)]
    return Answer(
        {
            options.output: pa.array(written, pa.string()),
            f"{options.output}_tokens": pa.array(counts, pa.int32()),
        },
        errors=errors,
    )


def seed_of(seed: int, text: str) -> int:
    """The seed of a row's draws: of (seed, text) and of nothing else."""
    digest = hashlib.blake2b(f"{seed}/{text}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def cache_tokens(shape: RaggedShape, sequences: int, context: StageContext) -> int:
    """How many tokens a cache should hold, where nobody says.

    Raises:
        ConfigError: not even one usual text fits into memory.
    """
    if shape.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(shape.device)
        bound_bytes = int(free * context.device_share * _GPU_SHARE)
    else:
        bound_bytes = int(usable_memory_bytes() * _CPU_SHARE)
    fitting = bound_bytes // shape.token_bytes
    usual = min(shape.positions, _USUAL_TOKENS)
    if fitting < usual:
        raise ConfigError(
            f"stage {context.name}: a key-value cache of {usual} tokens needs {usual * shape.token_bytes} "
            f"bytes, and {bound_bytes} are to be had",
            "set options.cache_tokens, or run fewer processes of this stage on the device",
        )
    # The longest text that the model can make should fit, if memory allows.
    return max(BLOCK, min(fitting, max(sequences * usual, shape.positions)))
