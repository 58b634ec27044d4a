"""The course of a probe, the same on every rank: measure, tell each other, decide alike (source: ours).

No rank leads. After each measurement all share what they saw, and the pure functions of cluster/ give the
same next step to everybody. Hosts are seated side by side, so that neighbours in seat order are neighbours in
fact.
"""

from __future__ import annotations

import platform
import socket
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from shoestring.base.clock import Clock
from shoestring.cluster import pairing
from shoestring.cluster.clustering import Grouping, Pair, find_groups, pair_of
from shoestring.cluster.topology import usable_cores, usable_memory_bytes
from shoestring.jobs.probe.findings import Facts, Findings, PairFound, Suspect, Worker
from shoestring.jobs.probe.meter import DTYPES, REPEATS, LinkRate, bulk_s, compute_rate, copy_rate, link_rate
from shoestring.jobs.probe.wire import Wire

Phase = Callable[[str], AbstractContextManager[None]]
LONGEST_SPAN_S = 0.05
SHORTEST_SPAN_S = 0.005
SLOWEST_ALONE = 2
ALONE_SPANS = 4
TIME_IS_UP = "time is up"
LARGEST_BULK_BYTES = 64 * 2**20
_SPANS_OF_A_PAIR = 6
_LAST_ROUNDS = 12


@dataclass(frozen=True)
class _Course:
    """What the parts of a survey share; seats, not ranks."""

    wire: Wire
    facts: tuple[Facts, ...]
    order: tuple[int, ...]
    seat: int
    span_s: float
    ends_at_s: float
    clock: Clock
    phase: Phase

    @property
    def size(self) -> int:
        return len(self.order)

    @property
    def nodes(self) -> list[str]:
        return [facts.node for facts in self.facts]

    def share(self, mine: dict[str, float]) -> list[dict[str, float]]:
        """By seat."""
        by_rank = self.wire.share(mine)
        return [by_rank[rank] for rank in self.order]


def facts_here(device: torch.device, threads: int, node: str = "", address: str = "") -> Facts:
    """What this process knows of its host and device; `node`: for a host whose own name will not do."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free_bytes = torch.cuda.mem_get_info(device)[0]
        return Facts(node or socket.gethostname(), address, "cuda", properties.name, 1, 1, free_bytes)
    name = node or socket.gethostname()
    return Facts(name, address, "cpu", _cpu_name(), usable_cores(), threads, usable_memory_bytes())


def survey(
    wire: Wire, facts: Facts, seconds: float, clock: Clock, phase: Phase = lambda _: nullcontext()
) -> Findings:
    """Measure everything; every rank of the wire calls this and gets the same findings.

    Args:
        facts: of this rank.
        seconds: what it may take; slow links and many small groups end the search early, which the findings
            say. phase: told what is being done.

    Raises:
        PeerLostError: a rank was lost.
    """
    began_s = clock.now()
    course = _course(wire, facts, seconds, clock, phase)
    workers = _compute(course)
    pairs, rounds = _pair_rounds(course)
    rates = {(pair.one, pair.other): pair.link.bytes_per_s for pair in pairs}
    found = find_groups(course.size, rates)
    groups_reason = f"{found.reason}; {rounds[-1]}" if rounds[-1].startswith(TIME_IS_UP) else found.reason
    suspects, slow = _paired_check(course, workers, rates)
    inside, between = _links_alone(course, found, {(p.one, p.other): p.link for p in pairs}, slow)
    shared, card_reason = _card(course)
    return Findings(
        workers=workers,
        pairs=pairs,
        rounds=rounds,
        groups=found.groups,
        groups_reason=groups_reason,
        inside=inside,
        between=between,
        card_shared=shared,
        card_reason=card_reason,
        suspects=suspects,
        took_s=_agreed(course, clock.now() - began_s),
    )


def _course(wire: Wire, facts: Facts, seconds: float, clock: Clock, phase: Phase) -> _Course:
    by_rank = wire.share(facts)
    hosts = list(dict.fromkeys(other.node for other in by_rank))
    order = tuple(sorted(range(wire.size), key=lambda rank: (hosts.index(by_rank[rank].node), rank)))
    turns = max(sum(other.node == host for other in by_rank) for host in hosts)
    rounds = min(wire.size, pairing.ALL_PAIRS_UP_TO) + _LAST_ROUNDS
    spans = (REPEATS + 1) * len(DTYPES) * (turns + 1) + _SPANS_OF_A_PAIR * rounds
    span_s = min(LONGEST_SPAN_S, max(SHORTEST_SPAN_S, seconds / spans))
    # Told once, so that all have the same number whatever their own clock and options say.
    agreed = min(wire.share(span_s))
    return _Course(
        wire, tuple(by_rank[rank] for rank in order), order, order.index(wire.rank), agreed,
        clock.now() + seconds, clock, phase,
    )  # fmt: skip


def _agreed(course: _Course, mine: float) -> float:
    """The largest of all ranks' numbers."""
    return max(values["x"] for values in course.share({"x": mine}))


# --- arithmetic ------------------------------------------------------------------------------------


def _compute(course: _Course) -> tuple[Worker, ...]:
    """Each alone on its host, one after the other; then all at once."""
    places = [course.nodes[:seat].count(node) for seat, node in enumerate(course.nodes)]
    mine: dict[str, float] = {}
    turns = max(places) + 1
    for turn in range(turns):
        with course.phase(f"compute alone, turn {turn + 1} of {turns}"):
            if places[course.seat] == turn:
                mine = _rates_here(course)
            course.share({})
    alone = course.share(mine)
    with course.phase("compute, all at once"):
        together = course.share(_rates_here(course, all_at_once=True))
    return tuple(
        Worker(f"{node}/{places[seat]}", course.order[seat], course.facts[seat], alone[seat], together[seat])
        for seat, node in enumerate(course.nodes)
    )


def _rates_here(course: _Course, all_at_once: bool = False) -> dict[str, float]:
    rates = {}
    for name, dtype in DTYPES.items():
        if all_at_once:
            course.share({})  # one dtype at a time, on all ranks
        rates[name] = compute_rate(dtype, course.wire.device, course.span_s, course.clock)
    return rates


# --- links -----------------------------------------------------------------------------------------


def _measure(course: _Course, pairs: Sequence[Pair], spans: int = 1) -> dict[Pair, LinkRate]:
    """Measure disjoint pairs at once; everybody learns the results."""
    mine = next((pair for pair in pairs if course.seat in pair), None)
    link = None
    if mine is not None:
        other = mine[0] if mine[1] == course.seat else mine[1]
        link = link_rate(course.wire, course.order[other], spans * course.span_s, course.clock)
    told = {} if link is None else {"rate": link.bytes_per_s, "latency": link.latency_s}
    seen = course.share(told)
    return {pair: LinkRate(seen[pair[0]]["rate"], seen[pair[0]]["latency"]) for pair in pairs}


def _pair_rounds(course: _Course) -> tuple[tuple[PairFound, ...], tuple[str, ...]]:
    pairs: list[PairFound] = []
    rounds: list[str] = []
    rates: dict[Pair, float] = {}
    while True:
        plan = pairing.next_round(course.size, len(rounds), rates)
        late_s = _agreed(course, course.clock.now() - course.ends_at_s)
        if not plan.pairs or late_s > 0:
            rounds.append(plan.reason if not plan.pairs else f"{TIME_IS_UP}; left out: {plan.reason}")
            return tuple(pairs), tuple(rounds)
        with course.phase(f"links, {plan.reason}"):
            for pair, link in _measure(course, plan.pairs).items():
                rates[pair] = link.bytes_per_s
                pairs.append(PairFound(*pair, link, len(rounds)))
        rounds.append(plan.reason)


def _links_alone(
    course: _Course, found: Grouping, links: dict[Pair, LinkRate], slow: set[int]
) -> tuple[LinkRate, LinkRate]:
    """(inside, between): of each kind the pairs that were slowest in their rounds again, one at a time.

    Suspects are left out where others are there: they are named, and are not what the cluster is. The latency
    is the median of all pairs of the kind, for one alone is easily disturbed.
    """
    if not links:
        copied = copy_rate(course.wire.device, course.span_s, course.clock)
        return copied, copied
    home = {seat: number for number, group in enumerate(found.groups) for seat in group}
    slowest: list[LinkRate | None] = []
    for wanted in (True, False):
        kind = [pair for pair in links if (home[pair[0]] == home[pair[1]]) == wanted]
        kind = [pair for pair in kind if not set(pair) & slow] or kind
        alone = []
        for pair in sorted(kind, key=lambda pair: links[pair].bytes_per_s)[:SLOWEST_ALONE]:
            with course.phase(f"a link {'inside a group' if wanted else 'between groups'}, alone"):
                rate = _rate_alone(course, pair)
            alone.append(LinkRate(rate, statistics.median(links[p].latency_s for p in kind)))
        slowest.append(min(alone, key=lambda link: link.bytes_per_s, default=None))
    inside, between = slowest
    known = inside or between
    if known is None:
        raise AssertionError("links are there, so a link of one kind is")
    return inside or known, between or known


def _card(course: _Course) -> tuple[bool, str]:
    """Two links of one host: time for some bytes over each alone, and over both until the later is done."""
    test = pairing.card_test(course.nodes)
    if test.pairs is None:
        return False, test.reason
    with course.phase("two links of one host, alone and together"):
        rates = [_rate_alone(course, pair) for pair in test.pairs]
        # Messages as long as those of a link alone, and both under way together for nearly all of the time.
        size_bytes = int(min(LARGEST_BULK_BYTES, 2 * ALONE_SPANS * course.span_s * min(rates)))
        alone = [size_bytes / _bulk_s(course, [pair], size_bytes) for pair in test.pairs]
        together = [size_bytes / _bulk_s(course, test.pairs, size_bytes)] * len(test.pairs)
    shared, reason = pairing.shares_card(alone, together)
    return shared, f"{test.reason}: {reason}"


def _bulk_s(course: _Course, pairs: Sequence[Pair], size_bytes: int) -> float:
    """Seconds until the last of the pairs is through; the better of two tries."""
    tries_s = []
    for _ in range(2):
        mine = 0.0
        for one, other in pairs:
            if course.seat in (one, other):
                peer = course.order[other if course.seat == one else one]
                mine = bulk_s(course.wire, peer, size_bytes, course.clock)
        tries_s.append(_agreed(course, mine))
    return min(tries_s)


# --- suspects --------------------------------------------------------------------------------------


def _paired_check(
    course: _Course, workers: Sequence[Worker], rates: dict[Pair, float]
) -> tuple[tuple[Suspect, ...], set[int]]:
    """The slowest again with the fastest; (what came out, seats whose links are slow)."""
    suspects: list[Suspect] = []
    slow: set[int] = set()
    for check in pairing.link_checks(course.nodes, rates):
        name = workers[check.suspect].name
        with course.phase(f"slow links: {name} again, with {workers[check.partner].name}"):
            again = _rate_alone(course, pair_of(check.suspect, check.partner))
            healthy = _rate_alone(course, check.healthy)
        verdict = pairing.judge(check, again, healthy)
        slow |= {check.suspect} if verdict.blame == "suspect" else set()
        suspects.append(Suspect(name, "links", verdict.blame, verdict.reason))
    for check in _compute_checks(workers):
        name = workers[check.suspect].name
        with course.phase(f"slow compute: {name} again, with {workers[check.partner].name}"):
            mine = {}
            if course.seat in (check.suspect, check.partner):
                device = course.wire.device
                mine = {"rate": compute_rate(torch.float32, device, 2 * course.span_s, course.clock)}
            seen = course.share(mine)
        verdict = pairing.judge(check, seen[check.suspect]["rate"], seen[check.partner]["rate"])
        suspects.append(Suspect(name, "compute", verdict.blame, verdict.reason))
    return tuple(suspects), slow


def _rate_alone(course: _Course, pair: Pair) -> float:
    """Bytes/s, by longer messages than in rounds: a pause of 40 ms after a message must not count much."""
    return _measure(course, [pair], spans=ALONE_SPANS)[pair].bytes_per_s


def _compute_checks(workers: Sequence[Worker]) -> list[pairing.Check]:
    kinds: dict[tuple[str, str], dict[int, float]] = {}
    for seat, worker in enumerate(workers):
        kind = (worker.facts.kind, worker.facts.device)
        kinds.setdefault(kind, {})[seat] = worker.together["fp32"]
    return [check for rates in kinds.values() for check in pairing.compute_checks(rates)]


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
