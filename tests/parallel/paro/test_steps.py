"""Accumulation, clipping, uneven batches, precision, recomputation, looking: each as one process does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import BUILT
from shoestring.models.moe_lm import layout as moe_layout
from shoestring.models.moe_lm.model import MoeLM
from shoestring.parallel.paro.exchange import Alone, Exchange
from tests.parallel.paro import toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, mean_over_ranks, rings

SOME = ("NNN", "NII", "ING", "IIG", "IGG", "GGG")  # each kind of exchange
UNEVEN = (3, 1, 2, 0)
TOLERANCE = 1e-5
BF16_TOLERANCE = 0.02  # of the loss; bf16 has 8 bits


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Unlike Adam it feels the scale of the gradient."""
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)


@pytest.mark.parametrize("micros", [(3,), UNEVEN], ids=["three each", "uneven"])
def test_accumulated_and_clipped_steps_equal_one_process(micros: tuple[int, ...], tmp_path: Path) -> None:
    clipped, _ = toys.alone(toys.tied, 4, 3, micros, 0.05, sgd)
    free, _ = toys.alone(toys.tied, 4, 3, micros, 0.0, sgd)
    assert toys.worst(clipped, free) > 100 * TOLERANCE  # so the bound is felt

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in ("NII", "ING", "IIG", "GGG"):
                for hint in (True, False):
                    model, optimizer = toys.sharded(toys.tied, strategy, exchange, sgd, clip_norm=0.05)
                    found = toys.train(model, optimizer, rank, range(3), micros, hint)
                    assert toys.worst(mean_over_ranks(found), clipped) < TOLERANCE, (strategy, hint)

    in_ranks(4, tmp_path, body)


def test_the_norm_is_that_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = toys.tied()
    for rank in range(4):
        (toys.loss_of(model, toys.tokens_of(0, rank)) / 4).backward()
    wanted = float(nn.utils.clip_grad_norm_(model.parameters(), 1.0))

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in BUILT:
                model, optimizer = toys.sharded(toys.tied, strategy, exchange)
                toys.train(model, optimizer, rank, [0])
                assert optimizer.norm == pytest.approx(wanted, rel=1e-5), strategy

    in_ranks(4, tmp_path, body)


def test_bf16_follows_fp32(tmp_path: Path) -> None:
    exact, _ = toys.alone(toys.tied, 4, 10)

    def norms_stay(name: str, parameter: nn.Parameter) -> torch.dtype:
        return torch.float32 if "norm" in name else torch.bfloat16

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in ("ING", "IIG", "GGG"):
                model, optimizer = toys.sharded(toys.tied, strategy, exchange, dtype=norms_stay)
                assert {flat.dtype for flat in optimizer.engine.units[1].flats} == {
                    torch.float32,
                    torch.bfloat16,
                }
                with torch.autocast("cpu", torch.bfloat16):  # two dtypes meet in one layer
                    found = mean_over_ranks(toys.train(model, optimizer, rank, range(10)))
                assert 0 < toys.worst(found, exact) < BF16_TOLERANCE, strategy
                model, optimizer = toys.sharded(
                    toys.tied, strategy, exchange, dtype=torch.bfloat16, gradient_dtype=torch.float32
                )
                found = mean_over_ranks(toys.train(model, optimizer, rank, range(10)))
                assert model.get_parameter("embed.weight").dtype == torch.bfloat16
                assert 0 < toys.worst(found, exact) < BF16_TOLERANCE, strategy

    in_ranks(4, tmp_path, body)


class Scale(nn.Module):
    """One number a column, at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Module()])
        self.gain = nn.Parameter(torch.ones(40))

    def forward(self, x: Tensor) -> Tensor:
        """A sum."""
        return (self.gain * x).sum()


@pytest.mark.parametrize("strategy", ["NNN", "GGG"])
def test_masters_keep_what_bf16_would_lose(strategy: str) -> None:
    """1 - 0.001 is 1 in bf16, ten times over; ten of them together are not."""
    _, optimizer = toys.sharded(
        Scale, strategy, Alone(), lambda m: torch.optim.SGD(m.parameters(), lr=1e-3), dtype=torch.bfloat16
    )
    model = optimizer.engine.model
    for _ in range(10):
        model(torch.ones(40, dtype=torch.bfloat16)).backward()
        optimizer.step()
    assert float(optimizer.pieces[0].master.detach().max()) == pytest.approx(0.99, abs=1e-6)
    with optimizer.engine.whole():
        assert float(model.get_parameter("gain").detach().max()) == float(torch.tensor(0.99).bfloat16())


@pytest.mark.parametrize("recompute", ["around", "inside"])
def test_recomputed_layers(recompute: str, tmp_path: Path) -> None:
    def build() -> nn.Module:
        return toys.Net(recompute=recompute, layers=3)

    wanted, _ = toys.alone(build, 4, 4)

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in ("NII", "ING", "IIG", "GGG"):
                model, optimizer = toys.sharded(build, strategy, exchange)
                found = mean_over_ranks(toys.train(model, optimizer, rank, range(4)))
                assert toys.worst(found, wanted) < TOLERANCE, strategy

    in_ranks(4, tmp_path, body)


def test_values_made_on_the_meta_device_are_the_real_ones(tmp_path: Path) -> None:
    def on_meta(build: toys.Build) -> toys.Build:
        def built() -> nn.Module:
            with torch.device("meta"):
                return build()

        return built

    def check(exchange: Exchange, build: toys.Build, **options: Any) -> None:
        torch.manual_seed(0)
        wanted = dict(build().named_parameters())
        model, optimizer = toys.sharded(on_meta(build), "IIG", exchange, **options)
        with optimizer.engine.whole():
            found = dict(model.named_parameters())
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not any(buffer.is_meta for buffer in model.buffers())
        assert toys.loss_of(model, toys.tokens_of(0, 0)).isfinite()

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            check(exchange, toys.tied)
            with torch.device("meta"):
                shell = MoeLM(toys.MOE, seed=None)
            check(exchange, toys.moe, initial=moe_layout.initial_values(shell, 3))

    in_ranks(4, tmp_path, body)


def test_a_meta_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        models = [MoeLM(toys.MOE, seed=None) for _ in range(2)]
    values = list(moe_layout.initial_values(models[0], 3))
    with pytest.raises(ConfigError, match="layers.1.moe.down"):
        toys.sharded(
            lambda: models[0],
            "NNN",
            Alone(),
            initial=[pair for pair in values if pair[0] != "layers.1.moe.down"],
        )
    with pytest.raises(ConfigError, match="router_std"):
        toys.sharded(lambda: models[1], "NNN", Alone(), initial=values[:-1])


def test_looking_at_the_model_between_steps(tmp_path: Path) -> None:
    """Without gradients, by other methods than forward, before and after an update."""
    torch.manual_seed(0)
    plain = toys.moe()
    inner = toys.adamw(plain)
    wanted = []
    for step in range(3):
        for rank in range(4):
            (toys.loss_of(plain, toys.tokens_of(step, rank)) / 4).backward()
        wanted += looks(plain)
        inner.step()
        inner.zero_grad()
        wanted += looks(plain)

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in SOME:
                model, optimizer = toys.sharded(toys.moe, strategy, exchange)
                found = []
                for step in range(3):
                    toys.loss_of(model, toys.tokens_of(step, rank)).backward()
                    found += looks(model)
                    optimizer.step()
                    found += looks(model)
                assert toys.worst(found, wanted) < TOLERANCE, strategy

    in_ranks(4, tmp_path, body)


def looks(model: nn.Module) -> list[float]:
    """Numbers that need all parameters."""
    assert isinstance(model, MoeLM)
    tokens = toys.tokens_of(99, 0)
    with torch.no_grad():
        loss = float(toys.loss_of(model, tokens))
    nll = float(model.token_nll(tokens).mean())
    logits = model.decode(tokens, model.new_cache(2, 16))
    return [loss, nll, float(logits.norm())]


def test_a_step_without_a_batch_changes_nothing(tmp_path: Path) -> None:
    """Gradients of the step before are not taken again; nor do those count that were thrown away."""

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in SOME:
                model, optimizer = toys.sharded(toys.tied, strategy, exchange, sgd)
                toys.train(model, optimizer, rank, [0])
                before = [piece.master.detach().clone() for piece in optimizer.pieces]
                optimizer.step()
                toys.loss_of(model, toys.tokens_of(1, rank)).backward()
                optimizer.zero_grad()
                optimizer.step()
                assert optimizer.norm == 0.0, strategy
                same = zip(before, optimizer.pieces, strict=True)
                assert all(torch.equal(old, piece.master) for old, piece in same), strategy

    in_ranks(4, tmp_path, body)


def test_a_second_backward_pass_is_refused(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy, build in (("IIG", toys.tied), ("GGG", toys.tied), ("GGG", toys.moe)):
                model, optimizer = toys.sharded(build, strategy, exchange)
                loss = toys.loss_of(model, toys.tokens_of(0, rank))
                loss.backward(retain_graph=True)
                with pytest.raises(ConfigError, match="second backward"):
                    loss.backward()
                optimizer.step()  # the first one counts
                assert optimizer.norm > 0

    in_ranks(4, tmp_path, body)
