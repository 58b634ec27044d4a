"""How long a worker worked, as against waited for others (source: ours).

Whoever waits for a slow peer is not slow itself: the monitor must not take the one for the other. Where
parameters are cut, passes have collectives in them, so their waiting is taken out of the passes' time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoestring.base.clock import Clock
from shoestring.cluster.strategies import Layout
from shoestring.parallel.paro.exchange import Pending, Scope
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.paro.plain import PlainExchange


class TimedExchange:
    """An exchange that adds up how long its caller has waited for it.

    Args:
        inner: does the work.
        clock: the time.

    Attributes:
        waited_s: seconds in `wait` since it was made. On CUDA streams wait, not the caller: nothing adds up.
    """

    def __init__(self, inner: PlainExchange | RingExchange, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock
        self.waited_s = 0.0

    @property
    def layout(self) -> Layout:
        """The ranks and their groups."""
        return self._inner.layout

    @property
    def rank(self) -> int:
        """This rank."""
        return self._inner.rank

    def gather(self, output: Tensor, shard: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Timed(self._inner.gather(output, shard, scope), self)

    def reduce(self, shard: Tensor, full: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Timed(self._inner.reduce(shard, full, scope), self)

    def sum(self, tensor: Tensor, scope: Scope) -> Pending:
        """See Exchange."""
        return _Timed(self._inner.sum(tensor, scope), self)

    def close(self) -> None:
        """End threads and connections; may be called again."""
        self._inner.close()

    def wait(self, pending: Pending) -> None:
        """Wait for it, and count that."""
        began_s = self._clock.now()
        try:
            pending.wait()
        finally:
            self.waited_s += self._clock.now() - began_s


class _Timed:
    def __init__(self, pending: Pending, exchange: TimedExchange) -> None:
        self._pending = pending
        self._exchange = exchange

    def done(self) -> bool:
        return self._pending.done()

    def wait(self) -> None:
        self._exchange.wait(self._pending)


class Stopwatch:
    """Time of what a device was given to do; begins when it is made.

    On CUDA the caller is through long before the device is: events in its stream tell.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self._clock = clock
        self._cuda = device.type == "cuda"
        self._began_s = self._ended_s = clock.now()
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if self._cuda else []
        if self._cuda:
            self._events[0].record()

    def stop(self) -> None:
        """The last of it has been given to the device."""
        self._ended_s = self._clock.now()
        if self._cuda:
            self._events[1].record()

    def seconds(self) -> float:
        """From begin to stop; waits for the device."""
        if not self._cuda:
            return self._ended_s - self._began_s
        self._events[1].synchronize()
        return float(self._events[0].elapsed_time(self._events[1])) / 1000.0
