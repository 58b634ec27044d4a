"""Runs a model whose parameters, gradients and states are sharded by three letters (PaRO, arXiv 2310.06003).

A micro-step is one forward and one backward pass. In it every rank issues the same collectives in the same
order, whatever its data does: units are gathered in the order of the model and again in reverse, the next
one while this one computes; gradients leave in reverse order while backward goes on. Hooks follow FSDP
(arXiv 2304.11277); the order, the letters and the exchange between groups are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Strategy
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.paro.exchange import SCOPES, Exchange
from shoestring.parallel.paro.flat import Entry, Flat, Piece
from shoestring.parallel.paro.gradients import Gradients
from shoestring.parallel.paro.trace import NORM, Tracer
from shoestring.parallel.paro.units import Unit, tensors_in
from shoestring.report.spans import Kind

Phase = Literal["idle", "forward", "backward"]


class Engine:
    """Hooks and collectives of a sharded model.

    Args:
        model: its parameters are in the units' flats already.
        units: the root first, then in the order of use.
        exchange: to the other ranks.
        strategy: three letters.

    Attributes:
        last: whether the coming micro-step is the step's last, whose gradients go on to the other groups
            while backward still runs. Without that hint they go in `finish_gradients`.
        stale: masters were updated, and parameters not yet made from them.
        tracer: told what happens when, where there is one; see `paro.trace`.
    """

    def __init__(self, model: nn.Module, units: list[Unit], exchange: Exchange, strategy: Strategy) -> None:
        self.model = model
        self.units = units
        self.exchange = exchange
        self.strategy = strategy
        self.device = units[0].flats[0].device if units[0].flats else units[1].flats[0].device
        self.last = False
        self.stale = False
        self.tracer: Tracer | None = None
        self._phase: Phase = "idle"
        self._forward_cursor = 0
        self._backward_cursor = 0
        self._reduce_cursor = 0
        self.gradients = Gradients(exchange, self._about)
        self._gradient_handles: list[RemovableHandle] = []
        self._hook()

    @property
    def flats(self) -> Iterator[Flat]:
        """All flats, in the order of use."""
        return (flat for unit in self.units for flat in unit.flats)

    def new_pieces(self) -> list[Piece]:
        """This rank's pieces of all trainable parameters, in the order of use."""
        return [piece for flat in self.flats if flat.trainable for piece in flat.pieces()]

    # --- forward ------------------------------------------------------------------------------

    def begin(self) -> None:
        """A forward pass begins: called by the model's own forward, or by whoever calls another of its
        methods."""
        if self._phase == "backward":
            return
        self._phase = "forward"
        self._forward_cursor = 1
        self._turn("forward", self.units[0])
        self._arrive(self.units[0])
        self._prefetch(1)

    def end(self, outputs: object) -> None:
        """A forward pass is over: called like `begin`."""
        for tensor in self._watched(outputs):
            tensor.register_hook(lambda _: self._start_backward())
        if self._phase == "forward" and not torch.is_grad_enabled():
            self.release()

    def release(self) -> None:
        """Free what a forward pass without gradients has left gathered."""
        for unit in self.units:
            self._arrive(unit) if unit.coming else None
            self._free(unit)
        if self._phase != "idle":
            self._turn("idle")
        self._phase = "idle"

    def enter(self, unit: Unit, inputs: object) -> None:
        """A unit's forward (or another method of it) begins."""
        if self._phase == "backward":
            self._arrive(unit)  # recomputation of a checkpointed unit
            return
        if self._phase == "idle":
            self.begin()
        if torch.is_grad_enabled():
            due = self._watched(inputs)
            unit.inputs_due = bool(due)
            if due:
                torch.autograd.graph.register_multi_grad_hook(due, lambda _: self._inputs_done(unit))
        self._forward_cursor = min(self._forward_cursor, unit.index)
        while self._forward_cursor <= unit.index:
            self._issue(self.units[self._forward_cursor])
            self._forward_cursor += 1
        self._prefetch(unit.index + 1)
        self._arrive(unit)
        self._turn("forward", unit)

    def _prefetch(self, index: int) -> None:
        """Gather the unit that comes next, unless its last update is still on its way: that would be waited
        for here, while this unit could compute. Then it is gathered when it is used; the order stays the
        same. A pass without gradients may end anywhere, and ranks would differ in what they asked for."""
        if index == self._forward_cursor < len(self.units) and torch.is_grad_enabled():
            unit = self.units[index]
            if all(pending.done() for pending in unit.syncing):
                self._issue(unit)
                self._forward_cursor += 1

    def leave(self, unit: Unit, outputs: object) -> None:
        """It is over."""
        for tensor in self._watched(outputs):
            tensor.register_hook(lambda _: self._before_backward(unit))
        if self._phase == "forward":
            self._turn("forward", self.units[0])
        if self._phase == "forward" and not (self._kept(unit) and torch.is_grad_enabled()):
            self._free(unit)

    def _watched(self, values: object) -> list[Tensor]:
        """Tensors whose gradients tell where backward is. Parameters that are whole are there anyway."""
        return tensors_in(values) if self.strategy.parameters != "N" or self.tracer is not None else []

    def _kept(self, unit: Unit) -> bool:
        """The root is in use all the time, and backward begins with the last unit: both stay."""
        return unit.index in (0, len(self.units) - 1)

    # --- backward ------------------------------------------------------------------------------

    def _start_backward(self) -> None:
        if self._phase == "backward":
            return
        if self._phase == "idle" and self.strategy.parameters != "N":
            raise ConfigError(
                "a second backward pass through one forward pass: its parameters are gone",
                "call backward once for each forward pass, on the sum of the losses",
            )
        self._enter_backward()
        torch.autograd.Variable._execution_engine.queue_callback(self._end_backward)

    def _enter_backward(self) -> None:
        for unit in self.units[1:]:  # some may not have been used here, but are elsewhere
            if unit.index >= self._forward_cursor:
                self._issue(unit)
            if unit.coming:
                self._arrive(unit)
            if not self._kept(unit):
                self._free(unit)
        self._forward_cursor = len(self.units)
        self._phase = "backward"
        self._turn("backward", self.units[0])
        self._backward_cursor = self._reduce_cursor = len(self.units) - 1
        for unit in self.units:
            unit.complete = False
            unit.left = {entry.name for flat in unit.trainable for entry in flat.entries}

    def _before_backward(self, unit: Unit) -> None:
        self._start_backward()
        while self._backward_cursor >= max(unit.index - 1, 0):
            self._issue(self.units[self._backward_cursor])
            self._backward_cursor -= 1
        self._arrive(unit)
        self._turn("backward", unit)

    def _take(self, unit: Unit, flat: Flat, entry: Entry) -> None:
        """One parameter's gradient is there."""
        self._start_backward()
        gradient = entry.parameter.grad
        assert gradient is not None
        self.gradients.used.add(entry.name)
        if self._in_place(flat):
            flat.dirty = True
        else:
            self.gradients.collect(flat, entry, gradient)
            entry.parameter.grad = None
        unit.left.discard(entry.name)
        if unit.index and not unit.left and not unit.inputs_due:
            self._complete(unit)

    def _inputs_done(self, unit: Unit) -> None:
        unit.inputs_due = False
        if self._phase == "backward" and not unit.left:
            self._complete(unit)

    def _complete(self, unit: Unit) -> None:
        """No gradient of this unit is owed any more: its weights go, its gradients leave in their turn."""
        if unit.complete:
            return
        unit.complete = True
        if self.tracer is not None:
            self.tracer.leave("backward", unit.name, self.units[0].name)
        self._free(unit)
        while self._reduce_cursor >= 0 and self.units[self._reduce_cursor].complete:
            self.gradients.send(self.units[self._reduce_cursor].trainable, self.last)
            self._reduce_cursor -= 1
        self.gradients.move_on(len(unit.trainable))

    def _end_backward(self) -> None:
        while self._backward_cursor >= 0:  # units that no gradient reached
            unit = self.units[self._backward_cursor]
            self._backward_cursor -= 1
            self._issue(unit)
            self._arrive(unit)
        for unit in reversed(self.units):
            unit.inputs_due = False
            self._complete(unit)
        self._phase = "idle"
        self._turn("idle")
        self.last = False

    def idle(self) -> None:
        """Take part in a micro-step without a batch: the same collectives, gradients of zero."""
        self.begin()
        self._forward_cursor = 1
        self._enter_backward()
        self._end_backward()

    # --- gradients ------------------------------------------------------------------------------

    def finish_gradients(self) -> None:
        """Return once all gradients are summed over all ranks.

        Raises:
            PeerLostError: a peer is gone; nothing was applied.
        """
        self._turn("update")
        self.gradients.finish([flat for unit in reversed(self.units) for flat in reversed(unit.trainable)])

    def summed(self, flat: Flat) -> Tensor:
        """The gradient of this rank's shard by the states letter, after `finish_gradients`."""
        return self.gradients.summed(flat)

    def clear_gradients(self) -> None:
        """Start the next step from zero."""
        self.gradients.clear([flat for flat in self.flats if flat.trainable])

    # --- parameters ------------------------------------------------------------------------------

    @torch.no_grad()
    def publish(self) -> None:
        """After an update: masters into parameters, and on their way to whoever keeps a coarser shard."""
        self.release()  # what a look at the model has left gathered is of the old step
        scope = SCOPES.get((self.strategy.states, self.strategy.parameters))
        for unit in self.units:
            for flat in unit.trainable:
                flat.publish()
                if scope is not None:
                    self._about(flat)
                    unit.syncing.append(self.exchange.gather(flat.parameters, flat.own_parameters(), scope))
        self.stale = False
        self._turn("idle")

    def settle_parameters(self) -> None:
        """Return once every shard of parameters is of the last update.

        Raises:
            PeerLostError: a peer is gone; parameters may be of two steps.
        """
        for unit in self.units:
            self._settle(unit)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All parameters gathered, for whoever wants to look at the model; all ranks enter together."""
        for unit in self.units:
            self._issue(unit)
        for unit in self.units:
            self._arrive(unit)
        try:
            yield
        finally:
            for unit in self.units:
                self._free(unit)

    def _settle(self, unit: Unit) -> None:
        for pending in unit.syncing:
            pending.wait()
        unit.syncing.clear()

    def _issue(self, unit: Unit) -> None:
        if self.strategy.parameters == "N" or unit.coming:
            return
        self._settle(unit)
        scope = SCOPES[(self.strategy.parameters, "N")]
        for flat in unit.flats:
            if not flat.here:
                flat.make_room()
                self._about(flat)
                unit.coming.append(self.exchange.gather(flat.full, flat.parameters, scope))

    def _arrive(self, unit: Unit) -> None:
        if not unit.here:
            self._issue(unit)
        self._settle(unit)
        for pending in unit.coming:
            pending.wait()
        unit.coming.clear()

    def _free(self, unit: Unit) -> None:
        if not unit.coming:
            for flat in unit.flats:
                flat.free()

    def _turn(self, kind: Kind, unit: Unit | None = None) -> None:
        if self.tracer is not None:
            self.tracer.turn(kind, unit.name if unit is not None else "")

    def _about(self, flat: Flat | None) -> None:
        if self.tracer is not None:
            names = [u.name for u in self.units if any(one is flat for one in u.flats)]
            self.tracer.about = names[0] if names else NORM

    # --- hooks -----------------------------------------------------------------------------------

    def _in_place(self, flat: Flat) -> bool:
        """Whether autograd adds straight into the accumulated gradients."""
        return flat.strategy.gradients == "N" and flat.gradient_dtype == flat.dtype

    def attach_gradients(self) -> None:
        """Where autograd may add in place, give it the place."""
        for flat in self.flats:
            if flat.trainable and self._in_place(flat):
                for entry in flat.entries:
                    view = flat.gradients[entry.offset : entry.end].view(entry.shape)
                    entry.parameter.grad = view

    def _hook(self) -> None:
        for unit in self.units:
            for flat in unit.trainable:
                for entry in flat.entries:
                    self._gradient_handles.append(self._hook_gradient(unit, flat, entry))
            if unit.module is not None:
                self._hook_unit(unit, unit.module)
        self.attach_gradients()
        self.model.register_forward_pre_hook(self._root_before, with_kwargs=True)
        self.model.register_forward_hook(self._root_after)

    def _hook_gradient(self, unit: Unit, flat: Flat, entry: Entry) -> RemovableHandle:
        handle: RemovableHandle = entry.parameter.register_post_accumulate_grad_hook(
            lambda _: self._take(unit, flat, entry)
        )
        return handle

    def _hook_unit(self, unit: Unit, module: nn.Module) -> None:
        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.enter(unit, (args, kwargs))

        def after(_: nn.Module, args: Any, outputs: Any) -> None:
            self.leave(unit, outputs)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def _root_before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        self.begin()

    def _root_after(self, _: nn.Module, args: Any, outputs: Any) -> None:
        self.end(outputs)

    def rewire(self, exchange: Exchange, strategy: Strategy) -> None:
        """Other ranks, other letters; the units' flats were made anew for them."""
        self.abandon()
        self.exchange = self.gradients.exchange = exchange
        self.strategy = strategy
        for unit in self.units:
            unit.coming.clear()
            unit.syncing.clear()
        for handle in self._gradient_handles:
            handle.remove()
        self._gradient_handles = [
            self._hook_gradient(unit, flat, entry)
            for unit in self.units
            for flat in unit.trainable
            for entry in flat.entries
        ]
        self.attach_gradients()

    def abandon(self) -> None:
        """Forget the micro-step under way, whose collectives have failed or will; masters are as they
        were."""
        self.gradients.abandon()
        self._phase = "idle"
        self.last = False
        for unit in self.units:
            unit.coming.clear()
            unit.inputs_due = False
            self._free(unit)
        self.clear_gradients()

    def drop_pass(self) -> bool:
        """Forget the pass under way, where passes have no collectives in them.

        Returns:
            Whether the gradients of the passes before are still whole; else they are forgotten, too.
        """
        if self._phase == "backward":
            self.abandon()
            return False
        self.release()
        return True

    @property
    def synced(self) -> bool:
        """Whether this rank's parameters are known to be of the last update."""
        if self.stale or self.device.type == "cuda":  # there, what was waited for may still not have happened
            return False
        try:
            for unit in self.units:
                for pending in unit.syncing:
                    if not pending.done():
                        return False
                    pending.wait()
        except PeerLostError:
            return False
        return True
