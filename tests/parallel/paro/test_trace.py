"""Traces: what the caller's thread and the rings' threads say, and that a trace changes nothing."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from shoestring.base.clock import FakeClock, SystemClock
from shoestring.cluster.strategies import equal_groups
from shoestring.parallel import paro
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.paro.exchange import Alone
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.paro.trace import NORM, TracedExchange, Tracer
from shoestring.parallel.rings import Request
from shoestring.report.spans import COMPUTE, Span, lane_of
from tests.apart import apart

LAYERS = 3
UPDATES, MICRO_STEPS = 2, 2


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(LAYERS))
        self.head = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        loss: torch.Tensor = self.head(x).square().mean()
        return loss


class Slow:
    """A collective that takes 3 s of a fake clock, or fails then."""

    def __init__(self, clock: FakeClock, lost: bool = False) -> None:
        self._clock, self._lost, self._over = clock, lost, False

    def done(self) -> bool:
        return self._over

    def wait(self) -> None:
        if not self._over:
            self._clock.advance(3.0)
        self._over = True
        if self._lost:
            raise PeerLostError("gone")


def train(optimizer: paro.ShardedOptimizer, model: nn.Module, rank: int = 0) -> list[float]:
    losses = []
    for update in range(UPDATES):
        for micro in range(MICRO_STEPS):
            optimizer.engine.last = micro == MICRO_STEPS - 1
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(100 * update + 10 * micro + rank))
            loss = model(x)
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
    return losses


def stack() -> tuple[Stack, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Stack()
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def test_a_turn_ends_the_one_before() -> None:
    clock = FakeClock(10.0)
    tracer = Tracer(3, clock)
    clock.advance(1.0)  # idle: no span
    tracer.turn("forward", "a")
    clock.advance(2.0)
    tracer.turn("forward", "a")  # still the same
    clock.advance(1.0)
    tracer.leave("forward", "b", "root")  # not in b
    tracer.leave("forward", "a", "root")
    tracer.turn("idle")
    assert tracer.spans() == [Span(3, COMPUTE, "forward", "a", 11.0, 14.0)]
    tracer.clear()
    assert tracer.rows() == []


def test_a_wait_is_cut_out_of_the_work_around_it() -> None:
    clock = FakeClock()
    tracer = Tracer(0, clock)
    slow = Slow(clock)
    tracer.turn("backward", "a")
    clock.advance(1.0)
    tracer.wait(slow, "b")
    tracer.wait(slow, "b")  # done: no time, no span
    clock.advance(1.0)
    with pytest.raises(PeerLostError):
        tracer.wait(Slow(clock, lost=True), "c")
    tracer.turn("idle")
    assert [(s.kind, s.name, s.start_s, s.end_s) for s in tracer.spans()] == [
        ("backward", "a", 0.0, 1.0),
        ("wait", "b", 1.0, 4.0),
        ("backward", "a", 4.0, 5.0),
        ("wait", "c", 5.0, 8.0),
    ]


def test_collectives_are_told_apart() -> None:
    clock = FakeClock()
    tracer = Tracer(0, clock)
    layout = equal_groups(4, 2)
    tracer.about = "a"
    gather = tracer.watch(Request("all_gather", "group", 64, layout, False))
    tracer.about = NORM
    norm = tracer.watch(Request("all_reduce", "world", 8, layout, False))
    clock.advance(1.0)
    gather("began")
    norm("began")
    clock.advance(1.0)
    norm("ended")
    clock.advance(1.0)
    gather("ended")
    assert sorted(tracer.spans(), key=lambda span: span.end_s) == [
        Span(0, lane_of("world", False), "norm", NORM, 1.0, 2.0, 8, 1.0),
        Span(0, lane_of("group", True), "parameters", "a", 1.0, 3.0, 64, 1.0),
    ]


def test_the_engine_tells_its_turns_in_order() -> None:
    model, inner = stack()
    tracer = Tracer(0, SystemClock())
    optimizer = paro.shard(model, inner, "IIG", exchange=TracedExchange(Alone(), tracer))
    optimizer.engine.tracer = tracer
    model(torch.randn(4, 8)).backward()
    optimizer.step()
    told = [(span.kind, span.name) for span in tracer.spans() if span.name != "root"]
    names = [f"layers.{number}" for number in range(LAYERS)]
    assert told == [
        *(("forward", name) for name in names),
        *(("backward", name) for name in reversed(names)),
        ("update", ""),
    ]
    with torch.no_grad():
        model(torch.randn(4, 8))
    tracer.turn("idle")
    spans = tracer.spans()
    assert all(left.end_s <= right.start_s for left, right in pairwise(spans))


@pytest.mark.parametrize(
    ("strategy", "group_size", "gathers", "sums", "sums_a_unit"),
    [
        ("IIG", 1, lane_of("peers", True), lane_of("peers", False), UPDATES),
        ("NIG", 1, lane_of("world", True), lane_of("peers", False), UPDATES),
        ("GGG", 2, lane_of("world", True), lane_of("world", False), UPDATES * MICRO_STEPS),
    ],
)
def test_every_collective_leaves_a_span_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str, group_size: int, gathers: str, sums: str,
    sums_a_unit: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert apart(tmp_path, lambda: _trace(tmp_path, strategy, group_size, gathers, sums, sums_a_unit)) == ""


def _trace(
    tmp_path: Path, strategy: str, group_size: int, gathers: str, sums: str, sums_a_unit: int
) -> None:
    """Two ranks as threads of this process: rings need a store alone."""
    layout = equal_groups(2, group_size)
    tracers = [Tracer(rank, SystemClock()) for rank in range(2)]
    losses: dict[tuple[int, bool], list[float]] = {}
    failed: list[BaseException] = []

    def rank_main(rank: int, traced: bool) -> None:
        store = dist.FileStore(str(tmp_path / f"store{traced}"), 2)
        watch = tracers[rank].watch if traced else None
        rings = RingExchange(layout, rank, store, timeout_s=20.0, watch=watch)
        try:
            model, inner = models[(rank, traced)]
            exchange = TracedExchange(rings, tracers[rank]) if traced else rings
            optimizer = paro.shard(model, inner, strategy, exchange=exchange)
            optimizer.engine.tracer = tracers[rank] if traced else None
            losses[(rank, traced)] = train(optimizer, model, rank)
            optimizer.engine.settle_parameters()
        except BaseException as error:
            failed.append(error)
        finally:
            rings.close()

    models = {(rank, traced): stack() for rank in range(2) for traced in (True, False)}
    for traced in (True, False):
        threads = [threading.Thread(target=rank_main, args=(rank, traced)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    assert not failed, failed
    assert losses[(0, True)] == losses[(0, False)] and losses[(1, True)] == losses[(1, False)]
    units = LAYERS + 1
    for rank in range(2):
        spans = tracers[rank].spans()
        lanes = {lane: [s for s in spans if s.lane == lane and s.kind != "norm"] for lane in (gathers, sums)}
        assert len(lanes[sums]) == sums_a_unit * units
        assert {span.name for span in lanes[sums]} == {"root", *(f"layers.{i}" for i in range(LAYERS))}
        assert len(lanes[gathers]) >= UPDATES * units
        assert sum(span.kind == "norm" for span in spans) == UPDATES
        for lane in lanes.values():
            assert all(a.end_s <= b.start_s for a, b in pairwise(lane))
            assert all(span.end_s > span.start_s and span.bytes > 0 and span.queued_s >= 0 for span in lane)
