"""Islands of fast links, found from rates alone (source: ours; average linkage: Sokal and Michener, 1958)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Pair = tuple[int, int]
MIN_RATIO = 2.0
MIN_SPREADS = 3.0


@dataclass(frozen=True)
class Grouping:
    """Workers in islands.

    Attributes:
        groups: sorted ranks of each island, islands by their first rank.
        ratio: how many times the rate between islands the rate inside them is; 1 where there is but one.
        reason: why these and no others.
    """

    groups: tuple[tuple[int, ...], ...]
    ratio: float
    reason: str

    def of(self, rank: int) -> int:
        """Number of the island of a rank."""
        return next(number for number, group in enumerate(self.groups) if rank in group)


def pair_of(one: int, other: int) -> Pair:
    """The two in ascending order, as keys of all tables of rates."""
    return (one, other) if one < other else (other, one)


def find_groups(size: int, rates: Mapping[Pair, float]) -> Grouping:
    """Cut the workers where that explains most of the differences between rates.

    Clusters are joined two by two, the pair with the highest mean log rate first. Each state on the way is a
    candidate; the one taken explains the largest part of the variance of the log rates by whether a pair is
    inside a cluster or not (Otsu's criterion), among those whose mean rates inside and between differ by at
    least `MIN_RATIO` times and by `MIN_SPREADS` standard deviations of the rates around them (the best of
    many equal links is no island); without any there is one group.

    Args:
        size: workers, ranks [0, size).
        rates: bytes/s of measured pairs, first rank below second; pairs may be missing.
    """
    merges = _joins(size, rates)
    cut = _best_cut(size, merges, rates)
    groups = _clusters(size, merges[: cut.joins])
    sizes = ", ".join(str(len(group)) for group in groups)
    if len(groups) == 1:
        return Grouping(
            groups, 1.0, "one group: no cut makes rates differ by more than their spread explains"
        )
    if cut.joins == len(merges):
        return Grouping(groups, 1.0, f"{len(groups)} groups of {sizes}: nothing was measured between them")
    return Grouping(
        groups,
        cut.ratio,
        f"{len(groups)} groups of {sizes}: rates inside are {cut.ratio:.3g} times those between, "
        f"which explains {cut.explained:.0%} of their differences",
    )


@dataclass(frozen=True)
class _Cut:
    """After how many joins, mean rate inside over that between, share of the variance that it explains."""

    joins: int
    ratio: float
    explained: float


def _joins(size: int, rates: Mapping[Pair, float]) -> list[Pair]:
    """The two clusters, named by their first members, that were joined at each step."""
    sums, counts = np.zeros((size, size)), np.zeros((size, size))
    for pair, value in _logs(rates).items():
        for at in (pair, pair[::-1]):
            sums[at] += value
            counts[at] += 1
    merges: list[Pair] = []
    for _ in range(size - 1):
        means = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
        one, other = (int(i) for i in np.unravel_index(int(np.argmax(means)), means.shape))
        if not np.isfinite(means[one, other]):
            break  # what is left was not measured with one another
        kept, gone = pair_of(one, other)
        merges.append((kept, gone))
        for table in (sums, counts):
            table[kept] += table[gone]
            table[:, kept] += table[:, gone]
            table[gone] = table[:, gone] = 0
            table[kept, kept] = 0
    return merges


def _best_cut(size: int, merges: list[Pair], rates: Mapping[Pair, float]) -> _Cut:
    """The cut to take: all joins where no other is allowed."""
    logs = _logs(rates)
    ends = np.array(list(logs), dtype=np.int64).reshape(-1, 2)
    values = np.array(list(logs.values()))
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    head = np.arange(size)
    best: _Cut | None = None
    for joins, (kept, gone) in enumerate(merges, start=1):
        head[head == gone] = kept
        inside = head[ends[:, 0]] == head[ends[:, 1]]
        if inside.all():
            break
        gap = float(values[inside].mean() - values[~inside].mean())
        weight = inside.sum() * (~inside).sum() / len(values)
        explained = float(weight) * gap**2
        spread = math.sqrt(max(0.0, total - explained) / len(values))
        cut = _Cut(joins, math.exp(gap), explained / total if total else 0.0)
        if cut.ratio < MIN_RATIO or gap < MIN_SPREADS * spread:
            continue
        if best is None or cut.explained > best.explained:
            best = cut
    return best or _Cut(len(merges), 1.0, 0.0)


def _logs(rates: Mapping[Pair, float]) -> dict[Pair, float]:
    return {pair: math.log(max(rate, 1.0)) for pair, rate in rates.items()}


def _clusters(size: int, merges: list[Pair]) -> tuple[tuple[int, ...], ...]:
    head = list(range(size))
    for kept, gone in merges:
        head = [kept if h == gone else h for h in head]
    return tuple(tuple(rank for rank in range(size) if head[rank] == name) for name in sorted(set(head)))


def split_rates(
    groups: tuple[tuple[int, ...], ...], rates: Mapping[Pair, float]
) -> tuple[Iterator[float], Iterator[float]]:
    """Rates of pairs inside one group, and of those between two."""
    home = {rank: number for number, group in enumerate(groups) for rank in group}
    return (
        (rate for (i, j), rate in rates.items() if home[i] == home[j]),
        (rate for (i, j), rate in rates.items() if home[i] != home[j]),
    )
