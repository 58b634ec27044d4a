"""How long a worker worked, as against waited for others (source: ours).

Whoever waits for a slow peer is not slow itself: the monitor must not take the one for the other. Where
parameters are cut, passes have collectives in them, so their waiting is taken out of the passes' time.
"""

from __future__ import annotations

import torch

from shoestring.base.clock import Clock
from shoestring.parallel.paro.exchange import Pending
from shoestring.parallel.paro.over_rings import RingExchange
from shoestring.parallel.paro.plain import PlainExchange
from shoestring.parallel.paro.waited import Wait, WaitedExchange


class TimedExchange(WaitedExchange):
    """An exchange that adds up how long its caller has waited for it.

    Args:
        inner: does the work.
        clock: the time.

    Attributes:
        waited_s: seconds in `wait` since it was made. On CUDA streams wait, not the caller: nothing adds up.
    """

    def __init__(self, inner: PlainExchange | RingExchange, clock: Clock) -> None:
        super().__init__(inner)
        self._line = inner
        self._clock = clock
        self.waited_s = 0.0

    def waiter(self) -> Wait:
        """By the clock."""
        return self._timed

    def close(self) -> None:
        """End threads and connections; may be called again."""
        self._line.close()

    def _timed(self, pending: Pending) -> None:
        began_s = self._clock.now()
        try:
            pending.wait()
        finally:
            self.waited_s += self._clock.now() - began_s


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
