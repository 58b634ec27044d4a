"""Rounds of arms in turns, and figures of what they took: pure but for `rounds`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.common import commit
from benchmarks.infer.ours import Ran
from benchmarks.network.arms import PartError

Row = dict[str, Any]
"""One run: `arm`, `round`, times; see `Ran.row`."""
Arm = Callable[[], tuple[Ran, dict[str, Any]]]
"""Runs once; what else is to be kept of it."""


def rounds(
    arms: Mapping[str, Arm], count: int, first: int = 0, label: str = ""
) -> tuple[list[Row], dict[str, str]]:
    """Let arms take turns, in the other order every other round. One that fails costs itself.

    Returns:
        The runs, and arm -> why it has fewer of them.
    """
    rows: list[Row] = []
    failed: dict[str, str] = {}
    at = commit()[:8]
    for number in range(first, first + count):
        for arm in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            try:
                found, more = arms[arm]()
            except PartError as error:
                failed[arm] = str(error)[-1500:]
                print(f"  {label} {arm} failed: {str(error)[-1500:]}", flush=True)
                continue
            rows.append(found.row(arm, round=number, commit=at, **more))
            print(
                f"  {label} {arm:22} round {number}: {found.work_s:.2f} s at work, {found.start_s:.2f} s "
                f"before, {found.took_s:.2f} s in all, {found.peak_bytes / 1e6:.0f} MB",
                flush=True,
            )
    return rows, failed


def values(rows: Sequence[Row], arm: str, key: str = "work_s") -> dict[int, float]:
    """Round -> a number of an arm."""
    return {row["round"]: row[key] for row in rows if row["arm"] == arm and key in row}


def median(rows: Sequence[Row], arm: str, key: str = "work_s") -> float | None:
    """Over rounds; None: there are none."""
    found = list(values(rows, arm, key).values())
    return statistics.median(found) if found else None


def spread(rows: Sequence[Row], arm: str, key: str = "work_s") -> list[float]:
    """Median, least, most."""
    found = list(values(rows, arm, key).values())
    return [round(of(found), 3) for of in (statistics.median, min, max)] if found else []


def ratio(rows: Sequence[Row], over: str, under: str, key: str = "work_s") -> float | None:
    """Median over rounds of the one's number over the other's of the same round; None: no round has both."""
    top, bottom = values(rows, over, key), values(rows, under, key)
    both = sorted(set(top) & set(bottom))
    return round(statistics.median(top[n] / bottom[n] for n in both), 3) if both else None


def best(rows: Sequence[Row], arms: Sequence[str], key: str = "work_s") -> str | None:
    """The arm with the lowest median; None: none has run."""
    known = {arm: found for arm in arms if (found := median(rows, arm, key)) is not None}
    return min(known, key=known.__getitem__) if known else None
