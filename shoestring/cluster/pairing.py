"""Which pairs of workers are measured together, and what a slow one is to be blamed for (source: ours).

With n(n-1)/2 pairs and n/2 of them at a time, n - 1 rounds measure all. In O(log n) rounds most pairs stay
unmeasured; that being in one island is transitive fills them in. Sorting n workers into g islands takes O(g
log n) such rounds at the most (Devanny, Goodrich and Jetviroj, "Parallel Equivalence Class Sorting", 2016),
so what is promised is O(log n) for few islands, not for many small ones. See docs/design/probe.md.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shoestring.cluster.clustering import Grouping, Pair, find_groups, pair_of

ALL_PAIRS_UP_TO = 16
COMPARISONS = 2
RANDOM_ROUNDS = 3
SLOW_SHARE = 0.6
MAX_CHECKS = 8
SHARED_BELOW = 1.5

Pairs = tuple[Pair, ...]


@dataclass(frozen=True)
class Round:
    """Disjoint pairs to measure at once (none: it is enough), and why."""

    pairs: Pairs
    reason: str


def all_pairs(size: int) -> tuple[Pairs, ...]:
    """Rounds in which every pair meets once: size - 1 of them, or size where that is odd (circle method)."""
    seats = list(range(size)) + [-1] * (size % 2)
    rounds = []
    for _ in range(len(seats) - 1):
        facing = zip(seats[: len(seats) // 2], reversed(seats[len(seats) // 2 :]), strict=True)
        rounds.append(tuple(sorted(pair_of(i, j) for i, j in facing if i >= 0 and j >= 0)))
        seats.insert(1, seats.pop())
    return tuple(rounds) if size > 1 else ()


def cube_rounds(size: int) -> tuple[Pairs, ...]:
    """Rounds i with i xor 2^k for each bit k: ceil(log2 size) of them; together they connect all ranks."""
    bits = max(0, size - 1).bit_length()
    return tuple(
        tuple((i, i ^ (1 << k)) for i in range(size) if i < i ^ (1 << k) < size) for k in range(bits)
    )


def next_round(size: int, done: int, rates: Mapping[Pair, float]) -> Round:
    """What to measure after `done` rounds gave `rates` (bytes/s by pair).

    Few workers: all pairs. Many: first the cube, whose short hops meet neighbours, of which islands mostly
    are made; then `RANDOM_ROUNDS` of pairs drawn by lot (a fixed one), lest islands lie where the cube never
    looks; then what the islands found so far leave open: each two of them are compared `COMPARISONS` times.
    """
    if size <= ALL_PAIRS_UP_TO:
        rounds = all_pairs(size)
        if done < len(rounds):
            return Round(rounds[done], f"all pairs: round {done + 1} of {len(rounds)}")
        return Round((), "every pair was measured")
    cube = cube_rounds(size)
    if done < len(cube):
        return Round(cube[done], f"neighbours at distance {2**done}: round {done + 1} of {len(cube)}")
    if done < len(cube) + RANDOM_ROUNDS:
        return Round(
            _drawn_pairs(size, done, rates), f"by lot: round {done + 1 - len(cube)} of {RANDOM_ROUNDS}"
        )
    found = find_groups(size, rates)
    pairs = _open_pairs(found, rates)
    if not pairs:
        return Round((), f"each two of {len(found.groups)} groups were compared")
    return Round(pairs, f"{len(pairs)} pairs that tell {len(found.groups)} groups apart")


def _drawn_pairs(size: int, seed: int, rates: Mapping[Pair, float]) -> Pairs:
    ranks = list(range(size))
    random.Random(seed).shuffle(ranks)
    free, chosen = set(ranks), []
    for i in ranks:
        if i in free:
            free.remove(i)
            partner = next((j for j in ranks if j in free and pair_of(i, j) not in rates), None)
            if partner is not None:
                free.remove(partner)
                chosen.append(pair_of(i, partner))
    return tuple(sorted(chosen))


def _open_pairs(found: Grouping, rates: Mapping[Pair, float]) -> Pairs:
    """A matching among islands that were compared too little; idle ranks then meet their own island."""
    home = {rank: number for number, group in enumerate(found.groups) for rank in group}
    compared: dict[Pair, int] = {}
    used = dict.fromkeys(home, 0)
    for i, j in rates:
        link = pair_of(home[i], home[j])
        compared[link] = compared.get(link, 0) + 1
        used[i] += 1
        used[j] += 1
    wanted = []
    for a, first in enumerate(found.groups):
        for b, second in enumerate(found.groups[a + 1 :], start=a + 1):
            have = compared.get((a, b), 0)
            if have < min(COMPARISONS, len(first) * len(second)):
                wanted.append((have, min(len(first), len(second)), a, b))
    if not wanted:
        return ()
    free = set(home)
    chosen = []
    for _, _, a, b in sorted(wanted):
        chosen += _meet(found.groups[a], found.groups[b], free, used, rates)
    for group in found.groups:
        while fill := _meet(group, group, free, used, rates):
            chosen += fill
    return tuple(sorted(chosen))


def _meet(
    first: Sequence[int],
    second: Sequence[int],
    free: set[int],
    used: Mapping[int, int],
    rates: Mapping[Pair, float],
) -> list[Pair]:
    """One new pair of free ranks, those measured least first; takes them from `free`."""
    for i in sorted((rank for rank in first if rank in free), key=lambda rank: (used[rank], rank)):
        for j in sorted((rank for rank in second if rank in free), key=lambda rank: (used[rank], rank)):
            if i != j and pair_of(i, j) not in rates:
                free -= {i, j}
                return [pair_of(i, j)]
    return []


# --- slow workers: the paired check ---------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Measure `suspect` again, with `partner`, and for comparison a healthy pair."""

    suspect: int
    partner: int
    healthy: Pair
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Who is slow: the `suspect` itself, or some `other`: its partner of before, their link, the moment."""

    blame: Literal["suspect", "other"]
    reason: str


def link_checks(nodes: Sequence[str], rates: Mapping[Pair, float]) -> tuple[Check, ...]:
    """Ranks whose best link is slow, inside their node or out of it, each to be paired with the fastest rank.

    Slow is below `SLOW_SHARE` of the median rank's best of the same kind: who has but slow links out of its
    node because all have is not suspect. At most `MAX_CHECKS` of a kind, slowest first.
    """
    return _link_checks("inside its node", nodes, rates, True) + _link_checks(
        "to other nodes", nodes, rates, False
    )


def _link_checks(
    where: str, nodes: Sequence[str], rates: Mapping[Pair, float], inside: bool
) -> tuple[Check, ...]:
    kind = {pair: rate for pair, rate in rates.items() if (nodes[pair[0]] == nodes[pair[1]]) == inside}
    best: dict[int, float] = {}
    for pair, rate in kind.items():
        for rank in pair:
            best[rank] = max(rate, best[rank]) if rank in best else rate
    if len(best) < 3:
        return ()
    middle = statistics.median(best.values())
    slow = {rank for rank, rate in best.items() if rate < SLOW_SHARE * middle}
    # The fastest pair of all is among these: neither of its ranks can be slow.
    healthy = sorted((pair for pair in kind if not set(pair) & slow), key=lambda pair: kind[pair])
    made = []
    for rank in sorted(slow, key=lambda rank: best[rank])[:MAX_CHECKS]:
        others = [o for o in best if o != rank and (nodes[o] == nodes[rank]) == inside]
        partner = max(others, key=lambda other: best[other])
        why = f"its best link {where} has {best[rank] / middle:.0%} of the median's"
        made.append(Check(rank, partner, healthy[len(healthy) // 2], why))
    return tuple(made)


def compute_checks(rates: Mapping[int, float]) -> tuple[Check, ...]:
    """Ranks of one kind of device that compute (FLOP/s, all at once) below `SLOW_SHARE` of their median.

    Each is to compute again at the same time as the fastest of them, and with nobody else.
    """
    if len(rates) < 3:
        return ()
    middle = statistics.median(rates.values())
    fastest = max(rates, key=lambda rank: rates[rank])
    slow = sorted((rank for rank in rates if rates[rank] < SLOW_SHARE * middle), key=lambda rank: rates[rank])
    return tuple(
        Check(
            rank, fastest, pair_of(rank, fastest), f"it computes at {rates[rank] / middle:.0%} of the median"
        )
        for rank in slow[:MAX_CHECKS]
    )


def judge(check: Check, again: float, healthy: float) -> Verdict:
    """What the second measurement says: of the suspect (`again`) and of the healthy, in one unit.

    Still slow beside the fastest: the rank is slow, or for a node with one link, that link. As fast as the
    healthy: its earlier partners or the links to them were slow, or it has passed.
    """
    share = again / max(healthy, 1e-9)
    again_said = f"again, with the fastest, it reached {share:.0%} of what is usual"
    if share < SLOW_SHARE:
        return Verdict("suspect", f"{check.reason}; {again_said}")
    excuse = "its partner, the link or the moment was slow"
    return Verdict("other", f"{check.reason}, but {again_said}: {excuse}")


# --- shared cards ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CardTest:
    """Two pairs out of one node, to be measured alone and together (None: there are none), and why these."""

    pairs: tuple[Pair, Pair] | None
    reason: str


def card_test(nodes: Sequence[str]) -> CardTest:
    """Two workers of one node, each with a worker of another node; of two other nodes where there are."""
    members: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        members.setdefault(node, []).append(rank)
    if len(members) < 2:
        return CardTest(None, "one node: no network card is between its workers")
    for node, ranks in members.items():
        if len(ranks) < 2:
            continue
        others = [there for name, there in members.items() if name != node]
        partners = [there[0] for there in others] if len(others) > 1 else others[0]
        if len(partners) > 1:
            pairs = (ranks[0], partners[0]), (ranks[1], partners[1])
            return CardTest(
                pairs, f"two workers of {node} with {len({nodes[p] for p in partners[:2]})} other nodes"
            )
    return CardTest(None, "no node has two workers with a partner each: nothing shares a card")


def shares_card(alone: Sequence[float], together: Sequence[float]) -> tuple[bool, str]:
    """Whether two pairs share a card: together they reach no more than one of them alone (bytes/s each).

    The sum over the mean alone is 1 for one shared card and 2 for cards of their own; `SHARED_BELOW` lies
    between.
    """
    ratio = sum(together) / statistics.fmean(alone)
    shared = ratio < SHARED_BELOW
    verb = "share a card" if shared else "have a card each"
    return shared, f"two pairs together reach {ratio:.2f} times one alone: they {verb}"
