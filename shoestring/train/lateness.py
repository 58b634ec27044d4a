"""Lets a worker that the others do not wait for stop in the middle of a pass (source: ours)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from shoestring.fleet.lookout import Lookout


class TooLate(Exception):
    """The others go on without what this worker has not computed yet."""


class Lateness:
    """Looks before each module of a forward pass and after each parameter's gradient.

    Args:
        lookout: knows whether this worker is late.
        compiled: the forward pass is compiled: it cannot be stopped inside.
    """

    def __init__(self, lookout: Lookout, compiled: bool) -> None:
        self._lookout = lookout
        self._compiled = compiled

    @contextmanager
    def watched(self, model: nn.Module, round_id: int, step: int) -> Iterator[None]:
        """Inside the block, a pass through the model may raise TooLate, and so may `check`."""
        handles = [
            parameter.register_post_accumulate_grad_hook(lambda _: self.check())
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        if not self._compiled:
            handles.append(register_module_forward_pre_hook(lambda module, args: self.check()))
        try:
            with self._lookout.over(round_id, step):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Raises TooLate where the others go on without this worker."""
        if self._lookout.late:
            raise TooLate
