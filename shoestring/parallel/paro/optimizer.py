"""Any elementwise optimizer over this rank's pieces; matrix optimizers that know pieces, too (source:
ours)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from shoestring.base.errors import ConfigError, ShoestringError
from shoestring.parallel.paro.engine import Engine
from shoestring.parallel.paro.flat import Piece

# Optimizers of torch that update each element by itself. Others would compute norms or products of a piece.
ELEMENTWISE = frozenset(
    {"SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "ASGD", "Rprop"}
)


@runtime_checkable
class TakesPieces(Protocol):
    """An optimizer that knows about pieces: it is told which ones it holds, at first and after every new
    cut."""

    def take_pieces(self, pieces: Sequence[Piece], engine: Engine) -> None:
        """Its groups hold these from here on."""
        ...


@runtime_checkable
class SharesWork(Protocol):
    """An optimizer that divides part of its step over the ranks.

    `prepare` is called with the summed gradient in place, before `step`, and changes neither parameters nor
    state: the exchange in it may fail.
    """

    def prepare(self, rank: int, world: int, exchange: Callable[[Tensor], object]) -> None:
        """Do this rank's share; `exchange` sums a tensor over the ranks, in place."""
        ...


class GradientError(ShoestringError):
    """A gradient is not finite; the first such parameters are named, and nothing was applied."""


class ShardedOptimizer(torch.optim.Optimizer):
    """Steps an optimizer on this rank's pieces of the masters.

    `step` sums gradients over all ranks, divides, clips, updates and sends the new parameters on their way.
    Its parts are public for a loop that has to know where it can fail: `reduce`, `facts`, `take`, then
    `update` and `Engine.publish`, or both as `apply`.

    Args:
        inner: the user's optimizer; its groups hold pieces from here on.
        engine: the sharded model's.
        pieces: of all trainable parameters, in the order of use.
        divide_by: what `step` divides the summed gradient by: the ranks, for a loss that is a mean.
        clip_norm: bound on the global norm of the gradient; 0: none.

    Attributes:
        unused: parameters that got no gradient on any rank in the last step; they are not updated.
        norm: global norm of the last gradient, before clipping.
        scale: what its sum was multiplied by, to be divided and clipped.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        engine: Engine,
        pieces: list[Piece],
        divide_by: float,
        clip_norm: float,
    ) -> None:
        super().__init__(inner.param_groups, inner.defaults)
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.inner = inner
        self.engine = engine
        self.pieces = pieces
        self.divide_by = divide_by
        self.clip_norm = clip_norm
        self.unused: tuple[str, ...] = ()
        self.norm = 0.0
        self.scale = 1.0
        self._said_unused = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update.

        Raises:
            GradientError: a gradient is not finite; the parameters are named.
            PeerLostError: a peer is gone; nothing was applied.
        """
        if closure is not None:
            raise ConfigError("a closure cannot be used with sharded gradients", "call backward before step")
        self.reduce()
        facts = self.facts()
        self.engine.exchange.sum(facts, "world").wait()
        self.take(facts, self.divide_by)
        if isinstance(self.inner, SharesWork):
            exchange = self.engine.exchange
            self.inner.prepare(exchange.rank, exchange.layout.size, lambda t: exchange.sum(t, "world").wait())
        self.apply()

    def reduce(self) -> None:
        """Sum the gradients over all ranks, each rank getting its shard."""
        self.engine.finish_gradients()

    def facts(self) -> Tensor:
        """float64 [1 + parameters]: to be summed over all ranks, and given to `take`.

        This rank's share of the squared norm, and for each parameter whether it got a gradient here.
        """
        square = torch.zeros((), dtype=torch.float64, device=self.engine.device)
        layout = self.engine.exchange.layout  # whole flats keep the layout that they were made for
        for flat in self.engine.flats:
            if flat.trainable:
                held_by = layout.size / layout.parts(flat.strategy.states)
                norm = torch.linalg.vector_norm(self.engine.summed(flat), dtype=torch.float32)
                square += norm.double().square() / held_by
        used = [float(piece.name in self.engine.gradients.used) for piece in self.pieces]
        return torch.cat([square.reshape(1), torch.tensor(used, dtype=torch.float64, device=square.device)])

    def take(self, facts: Tensor, divide_by: float) -> None:
        """Give each piece its gradient, divided and clipped.

        Args:
            facts: summed over all ranks.

        Raises:
            GradientError: the norm is not finite. All ranks raise it, naming the same parameters.
        """
        values = facts.tolist()
        self.norm = math.sqrt(values[0]) / divide_by if values[0] >= 0 else math.nan
        if not math.isfinite(self.norm):
            error = self._not_finite()
            self.engine.clear_gradients()  # or they would be in the next step, too
            raise error
        scale = 1.0 / divide_by
        if self.clip_norm and self.norm > self.clip_norm:
            scale *= self.clip_norm / self.norm
        self.scale = scale
        used = {piece.name for piece, count in zip(self.pieces, values[1:], strict=True) if count > 0}
        self._say_unused(tuple(piece.name for piece in self.pieces if piece.name not in used))
        ready: dict[int, Tensor] = {}
        for piece in self.pieces:
            flat = piece.flat
            if id(flat) not in ready:
                summed = self.engine.summed(flat)
                ready[id(flat)] = (
                    summed.mul_(scale) if summed.dtype == torch.float32 else summed.float().mul_(scale)
                )
            piece.master.grad = self._view(piece, ready[id(flat)]) if piece.name in used else None

    @torch.no_grad()
    def apply(self) -> None:
        """Update the masters; send the parameters to those who keep a coarser shard."""
        self.update()
        self.engine.publish()

    @torch.no_grad()
    def update(self) -> None:
        """Update the masters with the gradients that `take` has given; asks nobody."""
        self.engine.stale = True
        self.inner.step()
        for piece in self.pieces:
            piece.master.grad = None
        self.engine.clear_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Start from zero; `step` has done so already."""
        self.engine.clear_gradients()

    def _view(self, piece: Piece, shard: Tensor) -> Tensor | None:
        if piece.stop == piece.start:
            return None
        return shard[piece.offset : piece.offset + piece.stop - piece.start].view_as(piece.master)

    def _say_unused(self, names: tuple[str, ...]) -> None:
        self.unused = names
        if names and len(names) < len(self.pieces) and not self._said_unused:
            self._said_unused = True
            warnings.warn(
                f"{len(names)} parameters got no gradient on any rank and are not updated, e.g. {names[0]}; "
                "freeze them with requires_grad_(False), or use them in the loss",
                stacklevel=3,
            )

    def _not_finite(self) -> GradientError:
        """Find out together whose gradient it is: each rank sees its own shards only."""
        flags = []
        for piece in self.pieces:
            view = self._view(piece, self.engine.summed(piece.flat))
            flags.append(0 if view is None or bool(torch.isfinite(view).all()) else 1)
        found = torch.tensor(flags, dtype=torch.int64, device=self.engine.device)
        self.engine.exchange.sum(found, "world").wait()
        names = [piece.name for piece, bad in zip(self.pieces, found.tolist(), strict=True) if bad]
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        return GradientError(
            f"the gradient of {shown or 'no single parameter (but their sum)'} is not finite; none applied",
            "look at this step's samples, lower the learning rate, or clip the gradient",
        )


def adopt(inner: torch.optim.Optimizer, originals: dict[int, str], pieces: list[Piece]) -> None:
    """Put pieces in the place of the parameters in an optimizer's groups; state that is there is cut to
    match.

    Args:
        originals: id of a parameter as it was before sharding -> its name.

    Raises:
        ConfigError: the optimizer works on whole tensors, or holds parameters that are not the model's.
    """
    kind = type(inner).__name__
    whole = all(piece.whole for piece in pieces)
    if not (whole or kind in ELEMENTWISE or isinstance(inner, TakesPieces)):
        raise ConfigError(
            f"{kind} may need whole tensors, and this strategy cuts them into pieces",
            f"use one of {', '.join(sorted(ELEMENTWISE))}; or teach it pieces, as `train.muon` does",
        )
    by_name = {piece.name: piece for piece in pieces}
    for group in inner.param_groups:
        members: list[nn.Parameter] = []
        for parameter in group["params"]:
            name = originals[id(parameter)] if id(parameter) in originals else ""
            if name not in by_name:
                if id(parameter) in originals:
                    continue  # frozen
                raise ConfigError(
                    "the optimizer holds a parameter that the model does not have",
                    "build it from model.parameters()",
                )
            piece = by_name[name]
            if parameter in inner.state:
                state = {
                    key: without_meta(value, group, piece.flat.device) if isinstance(value, Tensor) else value
                    for key, value in inner.state.pop(parameter).items()
                }
                inner.state[piece.master] = _cut_state(state, piece)
            members.append(piece.master)
        group["params"] = members


def tell(inner: torch.optim.Optimizer, pieces: list[Piece], engine: Engine) -> None:
    """Let an optimizer that knows about pieces know which ones its groups hold now."""
    if isinstance(inner, TakesPieces):
        inner.take_pieces(pieces, engine)


CONSTANT = "initial_accumulator_value"


def without_meta(value: Tensor, group: dict[str, Any], device: torch.device) -> Tensor:
    """An optimizer's first state as its constructor made it, also where that was on the meta device: there,
    what it holds is the constant that Adagrad names, or zero."""
    if not value.is_meta:
        return value
    constant = float(group[CONSTANT]) if CONSTANT in group and value.dim() else 0.0
    return torch.full(value.shape, constant, dtype=value.dtype, device=device)


def _cut_state(state: dict[str, Any], piece: Piece) -> dict[str, Any]:
    return {
        key: value.reshape(-1)[piece.start : piece.stop].view_as(piece.master).clone()
        if isinstance(value, Tensor) and value.shape == piece.shape and value.dim()
        else value
        for key, value in state.items()
    }


@torch.no_grad()
def make_state(inner: torch.optim.Optimizer, pieces: list[Piece]) -> None:
    """Let the optimizer make its state now, inside flat tensors: what is saved or sent must be there to be
    filled.

    Steps once with gradients of zero and rate 0, then sets everything to zero. Pieces without elements get
    state, too: all ranks then know the same names.
    """
    if not any(piece.master in inner.state for piece in pieces):
        rates = [group["lr"] for group in inner.param_groups]
        for group in inner.param_groups:
            group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0
        for piece in pieces:
            piece.master.grad = torch.zeros_like(piece.master)
        inner.step()
        for group, rate in zip(inner.param_groups, rates, strict=True):
            group["lr"] = rate
        for piece in pieces:
            piece.master.grad = None
            for value in inner.state[piece.master].values() if piece.master in inner.state else ():
                if isinstance(value, Tensor):
                    value.zero_()
    for piece in pieces:
        if piece.master in inner.state:
            _into_flat(inner.state[piece.master], piece)


def _into_flat(state: dict[str, Any], piece: Piece) -> None:
    flat = piece.flat
    for key, value in state.items():
        if (
            isinstance(value, Tensor)
            and value.numel() == piece.stop - piece.start
            and value.shape == piece.master.shape
        ):
            if key == "step":
                continue
            if key not in flat.moments:
                flat.moments[key] = torch.zeros(flat.masters.numel(), dtype=value.dtype, device=value.device)
            view = flat.moments[key][piece.offset : piece.offset + value.numel()].view_as(value)
            view.copy_(value)
            state[key] = view
