"""What the language model declares about itself is true of it, and enough to shard it."""

from __future__ import annotations

import torch
from torch import nn

from shoestring.models.moe_lm import layout
from shoestring.models.moe_lm.model import MoeLM
from shoestring.parallel.paro.exchange import Alone
from tests.parallel.paro import toys


def test_initial_values_are_those_of_a_real_model() -> None:
    with torch.device("meta"):
        shell = MoeLM(toys.MOE, seed=None)
    real = MoeLM(toys.MOE, seed=5)
    found = dict(layout.initial_values(shell, 5))
    wanted = dict(real.named_parameters()) | dict(real.named_buffers())
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    other = dict(layout.initial_values(shell, 6))
    assert not torch.equal(found["embed"], other["embed"])


def test_drawing_weights_anew_leaves_the_statistics() -> None:
    model = MoeLM(toys.MOE, seed=5)
    model.router_mean.fill_(0.5)
    with torch.no_grad():
        model.embed.zero_()
    model.reset_parameters(5)
    assert torch.equal(model.embed, MoeLM(toys.MOE, seed=5).embed)
    assert bool((model.router_mean == 0.5).all())


def test_units_hold_all_but_the_tables() -> None:
    model = MoeLM(toys.MOE, seed=None)
    held = {id(p) for unit in layout.units(model) for p in unit.parameters()}
    outside = {name for name, p in model.named_parameters() if id(p) not in held}
    assert outside == {"embed", "final_norm.weight", "head.weight"}
    assert all(callable(getattr(model, name)) for name in layout.METHODS)


def test_routers_stay_in_fp32() -> None:
    def dtype_of(name: str, parameter: nn.Parameter) -> torch.dtype:
        return torch.float32 if layout.keeps_fp32(name) else torch.bfloat16

    config = toys.MOE.model_copy(update={"compute_dtype": "bf16"})
    exact, _ = toys.alone(toys.moe, 1, 10)
    model, optimizer = toys.sharded(lambda: MoeLM(config, seed=3), "GGG", Alone(), dtype=dtype_of)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    routers = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert routers == {f"layers.{index}.moe.router.weight" for index in range(config.layers)}
    assert 0 < toys.worst(toys.train(model, optimizer, 0, range(10)), exact) < 0.02
