"""How long to wait before another round, when rounds keep getting nowhere: a pure decision (source: ours)."""

from __future__ import annotations

FREE = 5  # a death is often seen by its peers before it is reported; that much is usual
FIRST_S = 0.1
MOST_S = 15.0


def pause_s(fruitless: int) -> float:
    """Seconds before the next round, after this many in a row in which no step was applied by all;
    doubles."""
    if fruitless <= FREE:
        return 0.0
    return min(MOST_S, FIRST_S * 2.0 ** min(fruitless - FREE - 1, 10))


def reason(fruitless: int, wait_s: float, problem: str) -> str:
    """In words, for the record."""
    return (
        f"{fruitless} rounds in a row got nowhere, the next forms in {wait_s:.1f} s; last problem: {problem}"
    )
