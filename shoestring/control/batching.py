"""How many items a batch of a stage should have, found out while it works: pure functions, and a holder of
their state (source: ours).

The size doubles for as long as items per second grow by `GAIN`, judged by medians of several batches, and
stays where that ends. Much later it is tried again: data and machines change. A batch that did not fit halves
the bound, which never rises again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

GAIN = 0.05
"""What a larger batch must bring, of items per second: less is not worth its memory and its delay."""
LEAST_LOOKS, MOST_LOOKS = 7, 25
"""Batches before two sizes are compared; as many more as the comparison is in doubt, up to the latter."""
FULL = 0.75
"""A batch with fewer of the items that it might have says nothing about this size."""
LONG_S = 4.0
"""A longer batch does not grow: its overhead is nothing by then, and a lost process costs all of it."""
REST, MOST_REST = 400, 25_600
"""Batches between two tries of another size; doubled each time that a try brings nothing."""
SPREAD = 1.4826
"""Median absolute deviation -> standard deviation, where noise is normal."""


@dataclass(frozen=True)
class Sizing:
    """What is known of the batches of a stage.

    Attributes:
        size: items that a batch should have now.
        most: bound that was given; `fits` is the one that lack of memory has taught.
        limit_bytes: of a process's memory; 0: no bound.
        mode: `climb` and `probe` compare `size` with `home`; `rest` stays.
        home: the size that was best so far; 0: none yet.
        home_rates, rates: items per second of batches of that size, and of this one.
        home_bytes, bytes: the most memory that was seen with either.
        item_bytes: that a process grew by for each item more, when that was seen last.
        warm: whether a batch of this size has gone through: the first allocates, and is not counted.
        rested: batches since the last try; `rest` is how many there should be.
        down: whether the next try is of a smaller size.
        reason: of the last change.
    """

    size: int
    most: int
    fits: int
    limit_bytes: int = 0
    mode: Literal["climb", "probe", "rest"] = "climb"
    home: int = 0
    home_rates: tuple[float, ...] = ()
    rates: tuple[float, ...] = ()
    home_bytes: int = 0
    bytes: int = 0
    item_bytes: float = 0.0
    warm: bool = False
    rested: int = 0
    rest: int = REST
    down: bool = False
    reason: str = ""


def measured(state: Sizing, items: int, took_s: float, memory_bytes: int = 0) -> Sizing:
    """A batch is through.

    Args:
        took_s: its seconds of computing.
        memory_bytes: resident bytes of the process after it; 0: not known.
    """
    if not (FULL * state.size <= items <= state.size) or took_s <= 0:
        return state
    state = replace(state, bytes=max(state.bytes, memory_bytes))
    if not state.warm:
        return replace(state, warm=True)
    keep = state.rates[-(MOST_LOOKS - 1) :]
    state = replace(state, rates=(*keep, items / took_s), rested=state.rested + 1)
    if state.mode == "rest":
        return _tried_again(state) if state.rested >= state.rest else state
    if len(state.rates) < LEAST_LOOKS:
        return state
    return _compared(state, took_s)


def too_large(state: Sizing, items: int) -> Sizing:
    """A batch of so many items did not fit into memory: never so many again."""
    fits = max(1, min(state.fits, items // 2))
    if state.size <= fits and state.home <= fits:
        return replace(state, fits=fits)
    reason = f"{items} items did not fit into memory: at most {fits} from now on"
    home = state.home if state.home <= fits else 0
    return replace(
        state, size=min(state.size, fits), fits=fits, mode="rest", home=home, rates=(), home_rates=(),
        bytes=0, home_bytes=0, warm=False, rested=0, reason=reason,
    )  # fmt: skip


def _compared(state: Sizing, took_s: float) -> Sizing:
    """Enough batches of this size were seen: go on, or back."""
    if not state.home:  # the first size of all
        return _onward(state, took_s)
    gain, doubt = gain_of(state.home_rates, state.rates)
    if state.home_bytes and state.bytes and state.home < state.size:
        grown = (state.bytes - state.home_bytes) / (state.size - state.home)
        state = replace(state, item_bytes=max(0.0, grown))
    if abs(gain - GAIN) < 2 * doubt and len(state.rates) < MOST_LOOKS:
        return state
    if gain >= GAIN:
        return _onward(replace(state, reason=_said(state, gain)), took_s)
    # Back to the size that was better; what it was measured at still counts.
    rest = min(2 * state.rest, MOST_REST) if state.mode == "probe" else state.rest
    return replace(
        state, size=state.home, rates=state.home_rates, bytes=state.home_bytes, mode="rest", home=0,
        home_rates=(), home_bytes=0, warm=True, rested=0, rest=rest,
        reason=f"{_said(state, gain)}: back to {state.home}",
    )  # fmt: skip


def _onward(state: Sizing, took_s: float) -> Sizing:
    """This size is the best so far: try the next one in the direction that was gone."""
    down = state.mode == "probe" and state.home > state.size
    following = max(1, state.size // 2) if down else min(2 * state.size, state.most, state.fits)
    why = _not_larger(state, following, took_s) if not down else ""
    if following == state.size or why:
        why = why or f"{state.size} is {'the least' if down else 'the most that is allowed'}"
        return replace(
            state, mode="rest", home=0, home_rates=(), home_bytes=0, rested=0,
            reason="; ".join(part for part in (state.reason, why) if part),
        )  # fmt: skip
    reason = state.reason or f"{following} items are tried: {state.size} do {_rate(state.rates)}"
    return replace(
        state, size=following, home=state.size, home_rates=state.rates, home_bytes=state.bytes, rates=(),
        bytes=0, warm=False, reason=reason,
    )  # fmt: skip


def _tried_again(state: Sizing) -> Sizing:
    """After a long rest: a look at a neighbour, the larger and the smaller one in turn."""
    other = max(1, state.size // 2) if state.down else min(2 * state.size, state.most, state.fits)
    typical_s = state.size / median(state.rates)
    stuck = other == state.size or (not state.down and bool(_not_larger(state, other, typical_s)))
    if stuck:
        return replace(state, rested=0, down=not state.down)
    return replace(
        state, size=other, mode="probe", home=state.size, home_rates=state.rates, home_bytes=state.bytes,
        rates=(), bytes=0, warm=False, rested=0, down=not state.down,
        reason=f"{other} items are tried again: {state.size} do {_rate(state.rates)}",
    )  # fmt: skip


def _not_larger(state: Sizing, following: int, took_s: float) -> str:
    """Why a batch should not grow to `following`; empty: it may."""
    if took_s > LONG_S:
        return f"a batch takes {took_s:.1f} s already"
    expected = state.bytes + state.item_bytes * (following - state.size)
    if state.limit_bytes and expected > 0.9 * state.limit_bytes:
        return f"{following} items would need about {expected / 1e6:.0f} of {state.limit_bytes / 1e6:.0f} MB"
    return ""


def gain_of(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """(relative gain of the median rate, its standard error)."""
    low, high = median(before), median(after)
    return high / low - 1, math.hypot(_error(before) / low, _error(after) / low)


def _error(rates: Sequence[float]) -> float:
    """Standard error of a median of so many values with the spread that these have."""
    middle = median(rates)
    return 1.2533 * SPREAD * median(abs(rate - middle) for rate in rates) / math.sqrt(len(rates))


def _said(state: Sizing, gain: float) -> str:
    before = f"{state.home} did {_rate(state.home_rates)}"
    return f"{state.size} items do {_rate(state.rates)}, {before} ({gain:+.0%})"


def _rate(rates: Sequence[float]) -> str:
    return f"{median(rates):.3g} items/s"


class BatchSize:
    """The size of a stage's batches, for as long as a worker lives.

    Args:
        start: to begin with.
        most: never more.
        limit_bytes: of a process's memory; 0: no bound.
        fixed: the user has said how many: only lack of memory changes it.
    """

    def __init__(self, start: int, most: int = 4096, limit_bytes: int = 0, fixed: bool = False) -> None:
        size = max(1, min(start, most))
        self._fixed = fixed
        self._state = Sizing(size, most, most, limit_bytes)

    def saw(self, items: int, took_s: float, memory_bytes: int = 0) -> None:
        """A batch is through; see `measured`."""
        if not self._fixed:
            self._state = measured(self._state, items, took_s, memory_bytes)

    def too_large(self, items: int) -> None:
        """A batch of so many items did not fit into memory."""
        self._state = too_large(self._state, items)

    def bound(self, limit_bytes: int) -> None:
        """A process's memory should stay below that from now on; 0: no bound. What is larger already does
        not grow."""
        self._state = replace(self._state, limit_bytes=limit_bytes)

    @property
    def size(self) -> int:
        """Items that the next batch should have at most."""
        return self._state.size

    @property
    def reason(self) -> str:
        """Of the last change; empty: there was none."""
        return self._state.reason
