"""The base of messages, and parts of them that are more than a value (source: ours)."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all that goes over a transport; the class name is the tag."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """The shards that a worker holds, where it does not hold all (see `cluster.strategies`).

    `strategy`: its three letters; `groups`: the layout that the shards were cut by; `rank`: the worker's in
    it; `round_id`: the round of that layout; `ready`: the step that this worker can apply by itself (-1:
    none), because all had agreed to; `synced`: the step that its parameters are of (-1: of none).
    """

    strategy: str
    groups: tuple[tuple[int, ...], ...]
    rank: int
    round_id: int
    ready: int = -1
    synced: int = -1


class Update(msgspec.Struct, frozen=True, array_like=True):
    """One update of the parameters that servers hold: the sum of these pushes, applied by all servers in the
    order of `number`.

    `progress`, `lr_factor`: as in Order; `save`: where to write the state after it (empty: nowhere);
    `dropped`: pushes that will be in no update.
    """

    number: int
    pushes: tuple[int, ...]
    progress: float
    lr_factor: float = 1.0
    save: str = ""
    dropped: tuple[int, ...] = ()
