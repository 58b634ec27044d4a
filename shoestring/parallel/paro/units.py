"""How a model is cut into units that are gathered together (source: ours; the default cut is that of FSDP's
users)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass

import torch
from torch import Tensor, nn

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import Layout, Strategy
from shoestring.parallel.paro.exchange import Pending
from shoestring.parallel.paro.flat import Entry, Flat

Dtype = Callable[[str, nn.Parameter], torch.dtype]


@dataclass
class Unit:
    """Flats that are gathered and freed together, and where they are in a micro-step.

    Attributes:
        index: place in the order of gathering; 0 is the root: whatever no other unit holds.
        module: whose forward uses it; None for the root.
        flats: one for each (dtype, trainable).
        coming: gathers on their way.
        syncing: updated shards on their way, which a gather has to wait for.
        left: names of parameters whose gradient this backward pass still owes.
        inputs_due: whether gradients of the unit's inputs are still to come: until then weights are in use.
        complete: no more gradient will come in this pass.
    """

    index: int
    name: str
    module: nn.Module | None
    flats: list[Flat] = field(default_factory=list)
    coming: list[Pending] = field(default_factory=list)
    syncing: list[Pending] = field(default_factory=list)
    left: set[str] = field(default_factory=set)
    inputs_due: bool = False
    complete: bool = False

    @property
    def here(self) -> bool:
        """Whether its parameters can be used."""
        return not self.coming and not self.syncing and all(flat.here for flat in self.flats)

    @property
    def trainable(self) -> list[Flat]:
        """Flats that get gradients."""
        return [flat for flat in self.flats if flat.trainable]


def default_units(model: nn.Module) -> list[nn.Module]:
    """The elements of the outermost ModuleLists that have parameters: layers, in most models."""
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, nn.ModuleList):
                found.extend(item for item in child if any(True for _ in item.parameters()))
            else:
                walk(child)

    walk(model)
    return found


def cut(
    model: nn.Module,
    modules: Sequence[nn.Module],
    strategy: Strategy,
    layout: Layout,
    rank: int,
    device: torch.device,
    dtype_of: Dtype,
    gradient_dtype: torch.dtype | None,
    wire_dtype: torch.dtype | None,
) -> list[Unit]:
    """Units with their flats, not yet allocated. A parameter that several units hold goes to the root.

    Raises:
        ConfigError: a unit lies inside another, or the model has no parameters.
    """
    units = [Unit(0, "root", None)] + [Unit(i, _name(model, m), m) for i, m in enumerate(modules, start=1)]
    homes: dict[int, set[int]] = {}
    for unit in units[1:]:
        assert unit.module is not None
        for inner in unit.module.modules():
            if inner is not unit.module and any(inner is other for other in modules):
                raise ConfigError(
                    f"the unit {unit.name} holds another unit", "name disjoint modules as units"
                )
        for parameter in unit.module.parameters():
            homes.setdefault(id(parameter), set()).add(unit.index)
    owners, names = _owners(model)
    for key, (parameter, places) in owners.items():
        home = homes[key] if key in homes else set()
        unit = units[next(iter(home))] if len(home) == 1 else units[0]
        dtype = dtype_of(names[key], parameter)
        sums = gradient_dtype or dtype
        made = Flat(strategy, layout, rank, dtype, sums, wire_dtype or sums, parameter.requires_grad, device)
        _place(unit, made, Entry(names[key], parameter.shape, 0, places, parameter))
    if not owners:
        raise ConfigError("the model has no parameters", "there is nothing to shard")
    kept = [unit for unit in units if unit.index == 0 or unit.flats]
    for index, unit in enumerate(kept):
        unit.index = index
    return kept


def _place(unit: Unit, made: Flat, entry: Entry) -> None:
    """Into the unit's flat of this kind; `made` is that flat where there is none yet."""
    for flat in unit.flats:
        if flat.dtype == made.dtype and flat.trainable == made.trainable:
            break
    else:
        flat = made
        unit.flats.append(flat)
    entry.offset = flat.entries[-1].end if flat.entries else 0
    flat.entries.append(entry)


def _owners(
    model: nn.Module,
) -> tuple[dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]]]], dict[int, str]]:
    owners: dict[int, tuple[nn.Parameter, list[tuple[nn.Module, str]]]] = {}
    names: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), (parameter, []))[1].append((module, attribute))
                names.setdefault(id(parameter), f"{prefix}.{attribute}" if prefix else attribute)
    return owners, names


def _name(model: nn.Module, wanted: nn.Module) -> str:
    for name, module in model.named_modules():
        if module is wanted:
            return str(name)
    raise ConfigError("a unit is not part of the model", "name submodules of the model as units")


@torch.no_grad()
def attach(unit: Unit) -> None:
    """Give the modules views into the (allocated) flats in place of their parameters; names and ties stay."""
    for flat in unit.flats:
        for entry in flat.entries:
            made = nn.Parameter(flat.full.new_empty(0), requires_grad=flat.trainable)
            # By `.data`, so that it has a version of its own: a gather into the flat is no change to
            # autograd.
            made.data = flat.full[entry.offset : entry.end].view(entry.shape)
            made.__dict__.update(entry.parameter.__dict__)
            for module, attribute in entry.owners:
                module._parameters[attribute] = made
            entry.parameter = made


def tensors_in(value: object) -> list[Tensor]:
    """All tensors in nested arguments or outputs of a module that take part in autograd; also in
    dataclasses."""
    found: list[Tensor] = []
    for leaf in torch.utils._pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found += [leaf] if leaf.requires_grad else []
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += tensors_in([getattr(leaf, one.name) for one in fields(leaf)])
    return found
