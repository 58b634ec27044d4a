"""Gradients that are no numbers, parameters that nobody uses, optimizers and letters that cannot work."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import BUILT, Layout, all_strategies, equal_groups
from shoestring.parallel import paro
from shoestring.parallel.paro.exchange import Alone
from tests.parallel.paro import toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, mean_over_ranks, rings

TOLERANCE = 1e-5
SOME = ("NNN", "NII", "ING", "IIG", "GGG")


class Choosy(toys.Net):
    """Uses one layer and one gain for some batches only, and two parameters never."""

    def __init__(self, skipped: int) -> None:
        super().__init__(layers=3)
        self.skipped = skipped
        self.gain = nn.Parameter(torch.full((12,), 1.5))
        self.spare = nn.Parameter(torch.full((5,), 2.0))
        self.layers[0].spare = nn.Parameter(torch.full((3, 3), 3.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, T] int64 -> logits [B, T, V]."""
        x = self.embed(tokens)
        skips = int(tokens[0, 0]) % 4 > 0
        for index, layer in enumerate(self.layers):
            if not skips or index != self.skipped:
                x = layer(x)
        out: Tensor = self.head(x if skips else x * self.gain)
        return out


def test_a_gradient_that_is_no_number_is_named_on_all_ranks(tmp_path: Path) -> None:
    wanted, _ = toys.alone(toys.tied, 4, 2)

    def spoil(gradient: Tensor) -> Tensor:
        return gradient.index_fill(0, torch.tensor([7]), float("nan"))

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in SOME:
                model, optimizer = toys.sharded(toys.tied, strategy, exchange)
                before = [piece.master.detach().clone() for piece in optimizer.pieces]
                name = "layers.1.up.bias"
                handle = model.get_parameter(name).register_hook(spoil) if rank == 2 else None
                with pytest.raises(paro.GradientError, match=rf"^the gradient of {name} is not finite"):
                    toys.train(model, optimizer, rank, [0])
                if handle is not None:
                    handle.remove()
                kept = zip(before, optimizer.pieces, strict=True)
                assert all(torch.equal(old, piece.master) for old, piece in kept), strategy
                found = mean_over_ranks(toys.train(model, optimizer, rank, range(2)))
                assert toys.worst(found, wanted) < TOLERANCE, strategy

    in_ranks(4, tmp_path, body)


@pytest.mark.parametrize("skipped", [0, 1, 2])
def test_what_some_ranks_or_none_use_is_updated_as_in_one_process(skipped: int, tmp_path: Path) -> None:
    """AdamW would decay a parameter whose gradient is zero; one without a gradient it leaves alone."""

    def build() -> nn.Module:
        return Choosy(skipped)

    users = [[int(toys.tokens_of(step, rank)[0, 0]) % 4 == 0 for rank in range(4)] for step in range(6)]
    assert {sum(step) for step in users} >= {0, 1}  # steps in which one rank uses it, or none
    wanted, plain = toys.alone(build, 4, 6)
    values = dict(plain.named_parameters())

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in SOME:
                model, optimizer = toys.sharded(build, strategy, exchange)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    found = mean_over_ranks(toys.train(model, optimizer, rank, range(6)))
                said = [str(one.message) for one in caught if "got no gradient" in str(one.message)]
                assert len(said) == 1 and "spare" in said[0], said
                assert {"spare", "layers.0.spare"} <= set(optimizer.unused)
                assert toys.worst(found, wanted) < TOLERANCE, strategy
                with optimizer.engine.whole():
                    for name, value in model.named_parameters():
                        torch.testing.assert_close(value, values[name], rtol=1e-4, atol=1e-5)
                    assert torch.equal(model.get_parameter("layers.0.spare"), torch.full((3, 3), 3.0))

    in_ranks(4, tmp_path, body)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.Muon([p for p in model.parameters() if p.dim() == 2]),
        lambda model: torch.optim.Adafactor(model.parameters()),
        lambda model: torch.optim.LBFGS(model.parameters()),
    ],
    ids=["Muon", "Adafactor", "LBFGS"],
)
@pytest.mark.parametrize("strategy", ["NII", "NNG", "IIG", "GGG"])
def test_optimizers_that_need_whole_tensors_are_refused(
    strategy: str, make: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    with pytest.raises(ConfigError, match="may need whole tensors"):
        toys.sharded(toys.tied, strategy, toys.Nobody(TWO_BY_TWO, 1), make)


def test_such_an_optimizer_may_have_whole_tensors() -> None:
    def muon(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Muon([p for p in model.parameters() if p.dim() == 2], lr=0.01)

    wanted, _ = toys.alone(toys.tied, 1, 3, optimizer=muon)
    model, optimizer = toys.sharded(toys.tied, "NNN", Alone(), muon)
    assert toys.worst(toys.train(model, optimizer, 0, range(3)), wanted) < TOLERANCE


def test_a_foreign_parameter_is_refused() -> None:
    with pytest.raises(ConfigError, match="a parameter that the model does not have"):
        toys.sharded(
            toys.tied,
            "IIG",
            toys.Nobody(TWO_BY_TWO, 0),
            lambda _: torch.optim.AdamW([nn.Parameter(torch.ones(2))]),
        )


@pytest.mark.parametrize("letters", ["", "IG", "IIGG", "XIG", "NN "])
def test_unknown_letters_are_refused(letters: str) -> None:
    with pytest.raises(ConfigError, match="three letters"):
        toys.sharded(toys.tied, letters, Alone())


def test_dominated_strategies_are_refused_and_all_others_cut() -> None:
    for strategy in all_strategies():
        if strategy.dominated:
            with pytest.raises(ConfigError, match="coarser"):
                toys.sharded(toys.tied, strategy.name, toys.Nobody(TWO_BY_TWO, 0))
        else:
            toys.sharded(toys.tied, strategy.name, toys.Nobody(TWO_BY_TWO, 0))
    assert not any(s.dominated for s in all_strategies() if s.name in BUILT)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_groups_that_do_not_divide_the_ranks_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="do not divide 4 ranks") as caught:
        equal_groups(4, size)
    assert "1, 2, 4" in caught.value.todo
    with pytest.raises(ConfigError, match="equal groups"):
        Layout(((0, 1), (2,)))


def test_units_inside_one_another_are_refused() -> None:
    model = toys.Net()
    inside = [model.get_submodule("layers.0"), model.get_submodule("layers.0.up")]
    with pytest.raises(ConfigError, match="holds another unit"):
        paro.shard(model, toys.adamw(model), "GGG", exchange=Alone(), units=inside)
    with pytest.raises(ConfigError, match="not part of the model"):
        paro.shard(model, toys.adamw(model), "GGG", exchange=Alone(), units=[nn.Linear(2, 2)])
    with pytest.raises(ConfigError, match="no parameters"):
        paro.shard(nn.Module(), toys.adamw(model), "GGG", exchange=Alone())
