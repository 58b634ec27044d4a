"""What workers and parameter servers say to each other (source: ours). Payloads are described with each."""

from __future__ import annotations

import msgspec
import torch

from shoestring.fleet.messages import Update

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Base of all that is asked."""


class Hello(Ask, frozen=True):
    """Which pieces are yours? Answered by Shard."""


class Push(Ask, frozen=True):
    """A worker's gradient, summed over its samples; payload: of this server's pieces, in their order and
    `dtype`; then the task's stats (float64); then of each table ids (int64) and values (fp32) of `rows`
    rows.

    `weight`: what its samples weigh together; `square`: squared norm of the worker's whole gradient; `used`:
    for each piece whether its parameter got a gradient. Answered by Done.
    """

    round_id: int
    number: int
    weight: float
    square: float
    used: bytes
    dtype: str
    rows: tuple[int, ...] = ()


class Pull(Ask, frozen=True):
    """Apply these updates, as far as they are new. Answered by Done; payload: the pieces with them in, in the
    model's own dtypes, then the buffers, as bytes one after the other."""

    round_id: int
    updates: tuple[Update, ...]


class Fetch(Ask, frozen=True):
    """Rows of a table; payload: their ids (int64). Answered by Done, with their values."""

    round_id: int
    table: int
    count: int


class Square(Ask, frozen=True):
    """From a server: the squared norm of your part of this update's summed gradient; answered by Value."""

    round_id: int
    update: Update


class Shard(Ask, frozen=True):
    """The server's pieces as (parameter, first element, one past the last), the buffers that come with its
    parameters, and its rows of tables as (parameter, first row, one past the last)."""

    pieces: tuple[tuple[str, int, int], ...]
    buffers: tuple[str, ...]
    tables: tuple[tuple[str, int, int], ...] = ()


class Done(Ask, frozen=True):
    """It is so."""


class Value(Ask, frozen=True):
    """A number."""

    value: float


class No(Ask, frozen=True):
    """Not possible: why."""

    why: str


Any = Hello | Push | Pull | Fetch | Square | Shard | Done | Value | No
_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Any)


def encode(ask: Ask) -> bytes:
    """As msgpack."""
    return _ENCODER.encode(ask)


def decode(data: bytes) -> Any:
    """Back.

    Raises:
        msgspec.DecodeError: on anything else.
    """
    return _DECODER.decode(data)
