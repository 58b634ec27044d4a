"""The state of a sharded model by names that do not depend on strategy or ranks (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping
from zlib import crc32

import torch
from torch import Tensor

from shoestring.parallel.paro.flat import Entry, Flat
from shoestring.parallel.paro.optimizer import ShardedOptimizer
from shoestring.parallel.paro.pieces import PieceTensor

SCALAR = "step"


def state_tensors(optimizer: ShardedOptimizer) -> dict[str, Tensor]:
    """Everything that makes up the state, for torch.distributed.checkpoint: filled in place when loaded.

    `model.NAME`: fp32 masters of trainable parameters, frozen parameters as they are, buffers whole.
    `optim.state.NAME.KEY`: what the optimizer remembers of a parameter. A tensor that this rank holds whole
    is a plain tensor in its shape, else a PieceTensor.
    After loading call `Engine.publish`, which makes the working parameters from the masters.
    """
    engine = optimizer.engine
    found: dict[str, Tensor] = {}
    for flat in engine.flats:
        letter = flat.strategy.states if flat.trainable else flat.strategy.parameters
        held = flat.masters if flat.trainable else flat.parameters
        for entry in flat.entries:
            found[f"model.{entry.name}"] = _part(flat, letter, held, entry)
            for key, moment in flat.moments.items():
                found[f"optim.state.{entry.name}.{key}"] = _part(flat, letter, moment, entry)
    for piece in optimizer.pieces:
        for key, value in optimizer.state.get(piece.master, {}).items():
            if isinstance(value, Tensor) and key not in piece.flat.moments:
                found[f"optim.state.{piece.name}.{key}"] = value
    for name, buffer in persistent_buffers(engine.model).items():
        found[f"model.{name}"] = buffer
    return found


def own_tensors(optimizer: ShardedOptimizer) -> dict[str, Tensor]:
    """What of the state this rank writes: of what several ranks hold, one of them, known to all without
    asking."""
    engine = optimizer.engine
    layout, rank = engine.exchange.layout, engine.exchange.rank
    group, _ = layout.locate(rank)
    copies = {"N": (layout.size, rank), "I": (layout.count, group), "G": (1, 0)}
    letters = {
        entry.name: flat.strategy.states if flat.trainable else flat.strategy.parameters
        for flat in engine.flats
        for entry in flat.entries
    }
    first = {piece.name for piece in optimizer.pieces if piece.start == 0 and piece.stop > 0}
    mine: dict[str, Tensor] = {}
    for name, tensor in state_tensors(optimizer).items():
        owner = _owner(name, letters)
        count, own = copies[letters[owner] if owner else "N"]
        if crc32(name.encode()) % count != own:
            continue
        if isinstance(tensor, PieceTensor):
            if tensor.local.numel():
                mine[name] = tensor
        elif not name.startswith("optim.") or tensor.numel() != 1 or owner in first or letters[owner] == "N":
            mine[name] = tensor
    return mine


def _owner(name: str, letters: Mapping[str, str]) -> str:
    """The parameter that a checkpoint tensor belongs to; empty for buffers."""
    plain = name.removeprefix("model.")
    if plain in letters:
        return plain
    inner = name.removeprefix("optim.state.").rpartition(".")[0]
    return inner if inner in letters else ""


def persistent_buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    """Buffers that belong into a checkpoint, by name."""
    kept: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                kept[f"{prefix}.{name}" if prefix else name] = buffer
    return kept


def _part(flat: Flat, letter: str, held: Tensor, entry: Entry) -> Tensor:
    first, _ = flat.range(letter)
    low, high = flat.part(letter, entry)
    local = held[low - first : high - first]
    if high - low == entry.numel:
        return local.view(entry.shape)
    return PieceTensor(local, entry.shape, max(0, low - entry.offset) if high > low else 0)
