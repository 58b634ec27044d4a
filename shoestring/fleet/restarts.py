"""Whether and when a failed worker is started again: a pure function (source: ours)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoestring.fleet.config import MemberConfig


@dataclass(frozen=True)
class Failure:
    """One death: when, the error text, and its signature (numbers and addresses taken out)."""

    at_s: float
    error: str
    signature: str


@dataclass(frozen=True)
class Restart:
    """`at_s` is when to start again; None: give the worker up. With the reason."""

    at_s: float | None
    reason: str


def headline(error: str) -> str:
    """The line of an error that says what happened: the last one that is not advice."""
    lines = [line.strip() for line in error.splitlines()]
    said = [line for line in lines if line and not line.startswith("what to do:")]
    return said[-1] if said else "no error text"


def signature(error: str) -> str:
    """What makes two failures the same: the error's headline without its numbers."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", headline(error))


def decide(now: float, failures: tuple[Failure, ...], config: MemberConfig, borne: int = 0) -> Restart:
    """Decide after the newest of `failures` (those since the worker was last healthy).

    A worker is given up when its last `same_failures` failures have one signature; else it is
    restarted after a pause that doubles with each failure.

    Args:
        borne: so many more of one signature are suffered, for each narrows down which sample is to blame.
    """
    most = config.same_failures + borne
    last = failures[-most:]
    if len(last) == most and len({failure.signature for failure in last}) == 1:
        return Restart(None, f"failed {len(last)} times in the same way: {last[-1].signature}")
    pause_s = min(config.backoff_max_s, config.backoff_s * 2 ** (len(failures) - 1))
    return Restart(now + pause_s, f"failure {len(failures)}: restart in {pause_s:.2g} s")
