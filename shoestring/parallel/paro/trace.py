"""When a sharded model computed, waited and talked to other ranks, as plain spans (source: ours).

    tracer = Tracer(rank, SystemClock())
    exchange = TracedExchange(RingExchange(layout, rank, watch=tracer.watch), tracer)
    optimizer = paro.shard(model, optimizer, "IIG", exchange=exchange)
    optimizer.engine.tracer = tracer
    ...
    rows = tracer.rows()  # for report.timeline

The caller's thread is in one state at a time, so its spans never overlap and their sum is wall time. Spans of
collectives come from the threads that carry them out: they begin when the thread takes the collective up, so
they hold waiting for the other ranks, and end when its last byte is there. Times of ranks on one machine
compare, as they share the clock. A collective over one rank moves nothing and leaves no span; on CUDA
collectives are enqueued, not run, and leave none either.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from shoestring.base.clock import Clock
from shoestring.parallel.paro.exchange import Exchange, Pending
from shoestring.parallel.paro.waited import Wait, WaitedExchange
from shoestring.parallel.rings import Request
from shoestring.parallel.rings.work import Told
from shoestring.report.spans import COMPUTE, Kind, Span, lane_of

NORM = "norm"  # what is summed over the world before an update; no unit's


@dataclass(frozen=True)
class _State:
    """What the caller's thread does, since when."""

    kind: Kind
    name: str
    start_s: float


class Tracer:
    """Collects the spans of one rank. Its methods take microseconds and may be called from any thread.

    Args:
        rank: this rank.
        clock: the one that all ranks read.

    Attributes:
        about: what collectives issued from here on are for: a unit's name, or `NORM`.
    """

    def __init__(self, rank: int, clock: Clock) -> None:
        self.rank = rank
        self.about = ""
        self._clock = clock
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        self._state = _State("idle", "", clock.now())

    def turn(self, kind: Kind, name: str = "") -> None:
        """The caller's thread goes over to this work."""
        before, now_s = self._state, self._clock.now()
        if (before.kind, before.name) == (kind, name):
            return
        self._state = _State(kind, name, now_s)
        if before.kind != "idle" and now_s > before.start_s:
            self._keep(Span(self.rank, COMPUTE, before.kind, before.name, before.start_s, now_s))

    def leave(self, kind: Kind, name: str, then: str) -> None:
        """The caller's thread is through with this work, and goes on with `then` of the same kind; nothing
        where it has gone over to something else already."""
        if (self._state.kind, self._state.name) == (kind, name):
            self.turn(kind, then)

    def wait(self, pending: Pending, name: str) -> None:
        """Wait for a collective: time that is not hidden.

        Raises:
            PeerLostError: as `Pending.wait`.
        """
        if pending.done():
            pending.wait()
            return
        before = self._state
        self.turn("wait", name)
        try:
            pending.wait()
        finally:
            self.turn(before.kind, before.name)

    def watch(self, request: Request) -> Told:
        """A collective was issued; what is returned is told when its thread begins and ends with it. For
        `Rings(watch=...)`."""
        issued_s, name = self._clock.now(), self.about
        gathers = request.operation == "all_gather"
        kind: Kind = "norm" if name == NORM else "parameters" if gathers else "gradients"
        lane = lane_of(request.scope, gathers)
        began_s = issued_s

        def told(what: str) -> None:
            nonlocal began_s
            now_s = self._clock.now()
            if what == "began":
                began_s = now_s
            else:
                self._keep(
                    Span(self.rank, lane, kind, name, began_s, now_s, request.size_bytes, began_s - issued_s)
                )

        return told

    def spans(self) -> list[Span]:
        """What has ended so far, by time."""
        with self._lock:
            return sorted(self._spans, key=lambda span: (span.start_s, span.end_s))

    def rows(self) -> list[dict[str, Any]]:
        """`spans` as JSON values."""
        return [asdict(span) for span in self.spans()]

    def clear(self) -> None:
        """Forget what was kept so far: of warm-up, say."""
        with self._lock:
            self._spans.clear()

    def _keep(self, span: Span) -> None:
        with self._lock:
            self._spans.append(span)


class TracedExchange(WaitedExchange):
    """An exchange whose waits are kept as spans.

    Args:
        inner: does the work; its rings should be watched by the same tracer.
        tracer: of this rank.
    """

    def __init__(self, inner: Exchange, tracer: Tracer) -> None:
        super().__init__(inner)
        self._tracer = tracer

    def waiter(self) -> Wait:
        """By the tracer, under the name that holds now."""
        return partial(self._tracer.wait, name=self._tracer.about)
