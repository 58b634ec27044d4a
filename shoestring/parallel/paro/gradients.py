"""Gradients on their way: collected while backward runs, cut, summed over the ranks (PaRO, arXiv
2310.06003)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoestring.parallel.paro.exchange import SCOPES, Exchange
from shoestring.parallel.paro.flat import Entry, Flat
from shoestring.parallel.paro.jobs import Chain, Jobs

# Units whose whole gradients may be under way at a time: more would hold more memory. What has been cut to a
# group's shard waits without bound, so that backward is not held up by slow links between groups.
OUTSTANDING = 2


class Gradients:
    """Takes in gradients, and turns them into this rank's shard of their sum.

    Args:
        exchange: to the other ranks.
        about: told which flat the next collective is about, or None.

    Attributes:
        used: names of parameters that got a gradient on this rank since the last update.
    """

    def __init__(self, exchange: Exchange, about: Callable[[Flat | None], None]) -> None:
        self.exchange = exchange
        self.used: set[str] = set()
        self._about = about
        self._jobs = Jobs()
        self._incoming: dict[int, Tensor] = {}  # id of a flat -> this pass's gradient, [padded]
        self._filled: dict[int, set[str]] = {}
        self._summed: dict[int, Tensor] = {}  # id of a flat -> the sum over all ranks, by the states letter

    # --- taking in ------------------------------------------------------------------------------

    @torch.no_grad()
    def collect(self, flat: Flat, entry: Entry, gradient: Tensor) -> None:
        """One parameter's gradient of this pass."""
        if flat.strategy.gradients == "N":
            flat.gradients[entry.offset : entry.end].add_(gradient.reshape(-1))
            flat.dirty = True
            return
        key = id(flat)
        if key not in self._incoming:
            self._incoming[key] = torch.empty(flat.padded, dtype=flat.wire_dtype, device=flat.device)
            self._filled[key] = set()
        target = self._incoming[key][entry.offset : entry.end]
        if entry.name in self._filled[key]:
            target.add_(gradient.reshape(-1))
        else:
            target.copy_(gradient.reshape(-1))
            self._filled[key].add(entry.name)

    def send(self, flats: list[Flat], last: bool) -> None:
        """These flats have all gradients of this pass; after the `last` pass of a step they go all the
        way."""
        for flat in reversed(flats):
            if flat.strategy.gradients != "N":
                full = self._fill_up(flat, self._incoming.pop(id(flat), None))
                self._jobs.start(self._reduce(flat, full, last))
            elif last:
                self._jobs.start(self._sync(flat))

    def move_on(self, flats: int) -> None:
        """Let finished exchanges be followed by their next ones; wait while too much is under way.

        Args:
            flats: of one unit.
        """
        self._jobs.poll()
        self._jobs.hold(OUTSTANDING * max(1, flats))

    @torch.no_grad()
    def _fill_up(self, flat: Flat, full: Tensor | None) -> Tensor:
        """Zeros where no gradient came."""
        filled = self._filled.pop(id(flat), set())
        if full is None:
            return torch.zeros(flat.padded, dtype=flat.wire_dtype, device=flat.device)
        for entry in flat.entries:
            if entry.name not in filled:
                full[entry.offset : entry.end].zero_()
        full[flat.numel :].zero_()
        return full

    # --- summing --------------------------------------------------------------------------------

    @torch.no_grad()
    def _reduce(self, flat: Flat, full: Tensor | None, last: bool) -> Chain:
        """One pass's gradient into the accumulated ones, by the gradients letter."""
        assert full is not None
        first, flat.dirty = not flat.dirty, True
        direct = first and flat.wire_dtype == flat.gradient_dtype
        target = flat.gradients if direct else torch.empty_like(flat.gradients, dtype=flat.wire_dtype)
        self._about(flat)
        yield self.exchange.reduce(target, full, SCOPES[(flat.strategy.gradients, "N")])
        full = None  # what follows works on a shard
        if first and not direct:
            flat.gradients.copy_(target)
        elif not first:
            flat.gradients.add_(target)
        if last:
            yield from self._sync(flat)

    @torch.no_grad()
    def _sync(self, flat: Flat) -> Chain:
        """From the gradients letter to the states letter, summed over all ranks."""
        have, want = flat.strategy.gradients, flat.strategy.states
        if not flat.dirty:
            flat.gradients.zero_()
        summed = flat.gradients if have == want == "G" else flat.gradients.to(flat.wire_dtype)
        if have != want:
            shard = summed.new_empty(flat.padded // flat.layout.parts(want))
            self._about(flat)
            # The exchange may overwrite what it sums: the accumulated gradients are not needed any more.
            yield self.exchange.reduce(shard, summed, SCOPES[(want, have)])
            summed = shard
        self._about(flat)
        if want == "I":
            yield self.exchange.sum(summed, "peers")
        elif want == "N":
            yield self.exchange.sum(summed, "world")
        self._summed[id(flat)] = summed

    def finish(self, flats: list[Flat]) -> None:
        """Return once the gradients of these flats, in this order on all ranks, are summed over all ranks.

        Raises:
            PeerLostError: a peer is gone.
        """
        self._jobs.drain(0)
        for flat in flats:
            if id(flat) not in self._summed:
                self._jobs.start(self._sync(flat))
        self._jobs.drain(0)
        self._about(None)

    def give(self, flat: Flat, summed: Tensor) -> None:
        """The sum over all ranks of this rank's shard, where it came by another way than an exchange."""
        self._summed[id(flat)] = summed

    def summed(self, flat: Flat) -> Tensor:
        """This rank's shard of the sum by the states letter, after `finish`."""
        return self._summed[id(flat)]

    # --- ending ---------------------------------------------------------------------------------

    def clear(self, flats: list[Flat]) -> None:
        """Start the next step from zero."""
        self._jobs.drain(0)
        self._summed.clear()
        self._incoming.clear()
        self._filled.clear()
        self.used.clear()
        for flat in flats:
            flat.dirty = False
            if flat.strategy.gradients == "N":
                flat.gradients.zero_()

    def abandon(self) -> None:
        """Forget what is under way; its collectives have failed or will."""
        self._jobs.clear()
