"""How large shards are, who gives some back, when a worker is added: pure functions (source: ours; smaller
shards towards the end as in guided self-scheduling, Polychronopoulos and Kuck 1987)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shoestring.data.ranges import Range

SMALLEST = 8
"""A shard is never cut below this part of its usual size: each is a file."""


def shard_rows(usual: int, todo: int, share: float) -> int:
    """Rows of the next shard: the usual number, and less towards the end, so that all workers end together.

    Args:
        todo: rows that nobody has yet.
        share: of the rate of all workers that is this one's; 1: it is alone.
    """
    if share >= 1:
        return usual
    part = math.ceil(todo * share / 2)
    return max(1, min(usual, max(part, math.ceil(usual / SMALLEST))))


def may_hold(held: int, usual: int, todo: int, share: float) -> bool:
    """Whether a worker may have another shard beside those that it holds: while they are no more than what is
    its part of the rest. A slow one that has much in hand at the end is waited for.

    Args:
        held: shards; `usual`: rows of one; todo, share: as above.
    """
    return not held or share >= 1 or held * usual <= todo * share


def give_back(held: Mapping[str, int], idle: Sequence[str]) -> tuple[dict[str, int], str]:
    """Nothing is todo and some workers are idle: who gives back how many of the shards that it has not begun.

    Args:
        held: worker -> shards that it holds; the one that it works on stays its own.
        idle: workers that hold none and ask for one.

    Returns:
        worker -> shards, and why.
    """
    spare = {name: count - 1 for name, count in held.items() if count > 1}
    wanted: dict[str, int] = {}
    for _ in idle:
        name = max(spare, key=lambda one: (spare[one], one), default="")
        if not name or not spare[name]:
            break
        spare[name] -= 1
        wanted[name] = 1 + (wanted[name] if name in wanted else 0)
    return wanted, f"nothing is todo, and {', '.join(sorted(idle))} have no rows" if wanted else ""


def grow(most: int, known: int, coming: int, todo: int, usual: int, active: int) -> tuple[int, str]:
    """How many workers to add, and why.

    Args:
        most: that there may be; `known`: that there are, those given up among them.
        coming: of those, who have not come up yet; they may wait for a machine with room.
        todo: rows that nobody has yet; `usual`: of a shard.
        active: who work.
    """
    if known >= most or coming or not active or todo < usual * active:
        return 0, ""
    return 1, f"all {active} workers are up, there may be {most}, and {todo} rows are todo"


def describe(ranges: Sequence[Range], most: int = 3) -> str:
    """Positions in words."""
    told = [f"{start}" if stop == start + 1 else f"{start}..{stop - 1}" for start, stop in ranges[:most]]
    return ", ".join(told) + (", ..." if len(ranges) > most else "")
