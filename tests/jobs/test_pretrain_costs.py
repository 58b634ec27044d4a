"""What a pre-training step costs follows from the model, its optimizer and the dtype of the shards."""

from __future__ import annotations

import pytest
import torch

from shoestring.jobs.pretrain.config import PretrainConfig
from shoestring.jobs.pretrain.job import step_costs
from shoestring.models.moe_lm.config import TINY
from shoestring.models.moe_lm.model import MoeLM
from shoestring.train.config import ParallelConfig, TrainConfig
from shoestring.train.muon import OptimizerConfig, build_optimizer


def _config(**more: object) -> PretrainConfig:
    return PretrainConfig(model=TINY, **more)  # type: ignore[arg-type]


def test_moments_are_those_that_the_optimizer_makes() -> None:
    model = MoeLM(TINY)
    for kind in ("muon", "adamw"):
        optimizer = build_optimizer(model, OptimizerConfig(kind=kind))  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        held = sum(
            4 * value.numel()
            for state in optimizer.state.values()
            for key, value in state.items()
            if key != "step"
        )
        costs = step_costs(_config(optimizer=OptimizerConfig(kind=kind)), "fp32")  # type: ignore[arg-type]
        assert costs.whole.moment_bytes * costs.whole.parameters == pytest.approx(held)
        assert (costs.whole.update_bytes > 0) == (kind == "muon")


def test_layers_and_root_are_the_models() -> None:
    cost = step_costs(_config(), "bf16").whole
    model = MoeLM(TINY)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.layer * cost.layers == sum(p.numel() for p in model.layers.parameters())
    assert cost.layers == TINY.layers


def test_widths_follow_the_dtype_of_the_shards_and_of_the_wire() -> None:
    auto = step_costs(_config(), "bf16")
    assert (auto.whole.parameter_bytes, auto.sharded.parameter_bytes) == (4, 2)
    assert (auto.whole.gradient_bytes, auto.sharded.gradient_bytes) == (4, 2)
    wire = step_costs(_config(train=TrainConfig(exchange_dtype="bf16")), "fp32")
    assert (wire.sharded.gradient_bytes, wire.sharded.accumulated_bytes) == (2, 4)
    for dtype, width in (("as_is", 4), ("bf16", 2), ("fp32", 4)):
        costs = step_costs(_config(parallel=ParallelConfig(dtype=dtype)), "bf16")  # type: ignore[arg-type]
        assert costs.whole.parameter_bytes == costs.sharded.parameter_bytes == width
