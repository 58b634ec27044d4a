"""`shard`: any model and elementwise optimizer, sharded by three letters (source: ours)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, equal_groups, parse_strategy
from shoestring.parallel.paro.engine import Engine
from shoestring.parallel.paro.exchange import Alone, Exchange
from shoestring.parallel.paro.flat import Entry, Flat
from shoestring.parallel.paro.optimizer import ShardedOptimizer, adopt, make_state, tell
from shoestring.parallel.paro.units import Unit, attach, cut, default_units

Initial = Iterable[tuple[str, Tensor]]


def shard(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: str = "IIG",
    *,
    layout: Layout | None = None,
    exchange: Exchange | None = None,
    units: Sequence[nn.Module] | None = None,
    dtype: torch.dtype | Callable[[str, nn.Parameter], torch.dtype] | None = None,
    gradient_dtype: torch.dtype | None = None,
    wire_dtype: torch.dtype | None = None,
    methods: Sequence[str] = (),
    clip_norm: float = 0.0,
    device: torch.device | None = None,
    initial: Initial | None = None,
) -> ShardedOptimizer:
    """Shard a model in place, and its optimizer with it; returns the one to step, whose `.engine` has the
    rest.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        optimizer = paro.shard(model, optimizer, "IIG", dtype=torch.bfloat16)

    After that the training loop stays as it is: forward, backward (once or several times), `step`. Every rank
    runs the same number of micro-steps; one without a batch calls `optimizer.engine.idle()` instead.

    Args:
        model: on any device, or on meta. All ranks hold the same values, or `initial` brings them.
        optimizer: over `model.parameters()`; updates each element by itself, unless the strategy keeps
            states whole.
        strategy: letters for parameters, gradients, states; see `cluster.strategies`.
        layout: fast groups; LOCAL_WORLD_SIZE consecutive ranks where not given.
        exchange: collectives; rings over the default process group where not given.
        units: modules that are gathered as one; elements of ModuleLists where not given.
        dtype: of parameters, activations and gradients on the wire: one for all floating parameters, or a
            choice by name; each parameter's own where not given. Masters are fp32 in any case.
        gradient_dtype: of the accumulated gradients; like the parameters where not given.
        wire_dtype: of gradients on the network; like the accumulated ones where not given.
        methods: of the model (or of units, too), other than forward, that begin a pass as forward does.
        clip_norm: bound on the global gradient norm; 0: none.
        device: where shards live; the model's where not given.
        initial: (name, value) of each parameter and buffer of a meta model, one at a time in any order;
            without it the modules' own `reset_parameters` are called, unit by unit.

    Raises:
        ConfigError: unknown letters, groups that do not divide the ranks, an optimizer that cannot work on
            pieces.
    """
    letters = parse_strategy(strategy)
    if letters.dominated:
        raise ConfigError(
            f"{letters.name}: {letters.dominated}", "take one of the strategies in `strategies.BUILT`"
        )
    if exchange is None:
        exchange = _default_exchange(layout)
    device = device or _device_of(model)
    cut_units = cut(
        model, default_units(model) if units is None else units, letters, exchange.layout, exchange.rank,
        device, _dtype_choice(dtype), gradient_dtype, wire_dtype,
    )  # fmt: skip
    originals = {id(e.parameter): e.name for u in cut_units for f in u.flats for e in f.entries}
    _load(model, cut_units, initial, device)
    engine = Engine(model, cut_units, exchange, letters)
    _wrap(engine, methods)
    pieces = engine.new_pieces()
    adopt(optimizer, originals, pieces)
    tell(optimizer, pieces, engine)
    make_state(optimizer, pieces)
    return ShardedOptimizer(optimizer, engine, pieces, float(exchange.layout.size), clip_norm)


def _default_exchange(layout: Layout | None) -> Exchange:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Alone()
    from shoestring.parallel.paro.over_rings import RingExchange

    size = dist.get_world_size()
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if "LOCAL_WORLD_SIZE" in os.environ else size
    return RingExchange(layout or equal_groups(size, local), dist.get_rank())


def _dtype_choice(
    dtype: torch.dtype | Callable[[str, nn.Parameter], torch.dtype] | None,
) -> Callable[[str, nn.Parameter], torch.dtype]:
    if callable(dtype):
        return dtype
    return lambda _, parameter: dtype if dtype and parameter.is_floating_point() else parameter.dtype


def _device_of(model: nn.Module) -> torch.device:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type != "meta":
        return device
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


@torch.no_grad()
def _load(model: nn.Module, units: list[Unit], initial: Initial | None, device: torch.device) -> None:
    """Fill the flats one parameter at a time; a unit's full tensors are there only while it is being
    filled."""
    places = {e.name: (u, f, e) for u in units for f in u.flats for e in f.entries}
    due = {u.index: sum(len(f.entries) for f in u.flats) for u in units}
    started: set[int] = set()
    buffers = dict(model.named_buffers())
    for name, value in _values(model, units, initial, device):
        if name in buffers:
            _set_buffer(model, name, value.to(device))
            continue
        if name not in places:
            continue  # another name of a tied parameter
        unit, flat, entry = places.pop(name)
        if unit.index not in started:
            started.add(unit.index)
            for one in unit.flats:
                one.allocate()
        if value.shape != entry.shape:
            raise ConfigError(
                f"{name}: {tuple(value.shape)} where {tuple(entry.shape)} is due", "mend `initial`"
            )
        flat.fill(entry, value)
        due[unit.index] -= 1
        if not due[unit.index]:
            attach(unit)
            for one in unit.flats:
                one.settle()
    if places:
        raise ConfigError(f"`initial` has no value for {next(iter(places))}", "give each parameter a value")
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ConfigError(f"the buffer {name} is on the meta device", "give its value in `initial`")
        _set_buffer(model, name, buffer.to(device))


def _values(
    model: nn.Module, units: list[Unit], initial: Initial | None, device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    entries = [(f, e) for u in units for f in u.flats for e in f.entries]
    if initial is not None:
        yield from initial
    elif not any(entry.parameter.is_meta for _, entry in entries):
        for _, entry in entries:
            yield entry.name, entry.parameter
    else:
        yield from _reset(model, entries, device)


def _reset(
    model: nn.Module, entries: list[tuple[Flat, Entry]], device: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Materialise module by module, in the order of the model, as the model's own construction would."""
    names = {id(entry.parameter): entry.name for _, entry in entries}
    held = {id(entry.parameter): entry.parameter for _, entry in entries}
    for prefix, module in model.named_modules():
        own = {a: p for a, p in module._parameters.items() if p is not None and id(p) in held}
        own_buffers = {a: b for a, b in module._buffers.items() if b is not None and b.is_meta}
        if not own and not own_buffers:
            continue
        if not callable(getattr(module, "reset_parameters", None)):
            raise ConfigError(
                f"{type(module).__name__} has no reset_parameters, so its values are unknown",
                "give them as `initial`",
            )
        module.to_empty(device=device, recurse=False)
        module.reset_parameters()
        for attribute, parameter in own.items():
            held.pop(id(parameter))
            yield names[id(parameter)], module._parameters[attribute]
        for attribute in own_buffers:
            yield (f"{prefix}.{attribute}" if prefix else attribute), module._buffers[attribute]


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    model.get_submodule(path)._buffers[attribute] = value


def _wrap(engine: Engine, methods: Sequence[str]) -> None:
    """Let other methods than forward begin a forward pass, too, and those of the same name use a unit."""
    for name in methods:
        _around(engine.model, name, lambda _: engine.begin(), engine.end)
        for unit in engine.units[1:]:
            if unit.module is not None and callable(getattr(unit.module, name, None)):
                _around(unit.module, name, partial(engine.enter, unit), partial(engine.leave, unit))


def _around(
    module: nn.Module, name: str, before: Callable[[object], None], after: Callable[[object], None]
) -> None:
    plain = getattr(module, name)

    def wrapped(*args: object, **kwargs: object) -> object:
        before((args, kwargs))
        result = plain(*args, **kwargs)
        after(result)
        return result

    setattr(module, name, wrapped)
