"""The agent in the worker: takes on what the controller has decided, at the safe point between two steps,
when no gradient is half summed (source: AntDT; that each order says all that holds is ours)."""

from __future__ import annotations

import math


class Agent:
    """What holds for this worker in the step at hand.

    Args:
        micro_batch: samples of a pass where the controller says nothing.

    Attributes:
        micro_batch: samples of one forward and backward pass.
        passes: the most that a member of the round makes in this step.
        lr_factor: on the schedule's learning rate.
    """

    def __init__(self, micro_batch: int) -> None:
        self._usual = micro_batch
        self.micro_batch = micro_batch
        self.passes = 0
        self.lr_factor = 1.0

    def take(self, micro_batch: int, passes: int, lr_factor: float) -> None:
        """A new step, and all that was decided for it; 0 samples of a pass: the usual."""
        self.micro_batch = micro_batch or self._usual
        self.passes = passes
        self.lr_factor = lr_factor

    def passes_for(self, samples: int, together: bool) -> int:
        """Passes over so many samples; as many as the others' where all have to make them `together`."""
        own = math.ceil(samples / self.micro_batch)
        return max(own, self.passes) if together else own
