"""What is made of pseudo-gradients: who is left out, who counts how much, and the outer update."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shoestring.train.config import EditConfig
from shoestring.train.outer import REST, Surprise, layers_of, outer_step, weights_of


class Deep(nn.Module):
    """Layers in a list, one with a list of its own, and parameters outside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 2, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(2, 2, bias=False)])}) for _ in range(2)
        )
        self.head = nn.Linear(2, 2, bias=False)


def test_elements_of_module_lists_are_layers() -> None:
    model = Deep()
    assert layers_of(model, [name for name, _ in model.named_parameters()], None) == {
        REST: ["embed.weight", "head.weight"],
        "blocks.0": ["blocks.0.experts.0.weight"],
        "blocks.1": ["blocks.1.experts.0.weight"],
    }


def settled(config: EditConfig, rounds: int = 40) -> Surprise:
    """After many norms around 1 and around 10."""
    surprise = Surprise(2, config)
    generator = torch.Generator().manual_seed(0)
    for _ in range(rounds):
        noise = 0.1 * torch.randn(2, generator=generator, dtype=torch.float64)
        surprise.unusual(torch.tensor([1.0, 10.0], dtype=torch.float64) + noise)
    return surprise


def test_a_norm_far_above_the_mean_of_its_layer_is_unusual() -> None:
    seen = settled(EditConfig()).unusual(torch.tensor([3.0, 10.1], dtype=torch.float64))
    assert seen.tolist() == [True, False]


def test_a_small_norm_is_never_unusual() -> None:
    assert not settled(EditConfig()).unusual(torch.tensor([0.0, 0.0], dtype=torch.float64)).any()


def test_what_was_left_out_does_not_move_the_mean() -> None:
    surprise = settled(EditConfig())
    for _ in range(100):
        assert surprise.unusual(torch.tensor([50.0, 10.0], dtype=torch.float64)).tolist() == [True, False]


def test_in_the_warm_up_only_what_is_not_finite_is_unusual() -> None:
    surprise = Surprise(2, EditConfig(warmup=5))
    assert surprise.unusual(torch.tensor([1.0, 1e30], dtype=torch.float64)).tolist() == [False, False]
    assert surprise.unusual(torch.tensor([torch.nan, torch.inf], dtype=torch.float64)).tolist() == [
        True,
        True,
    ]


def weights(
    norms: list[float], flags: list[bool], samples: list[float], temperature: float = 1.0
) -> list[float]:
    found = weights_of(
        torch.tensor(norms, dtype=torch.float64)[:, None], torch.tensor(flags)[:, None],
        torch.tensor(samples, dtype=torch.float64), temperature,
    )  # fmt: skip
    return [round(float(w), 6) for w in found[:, 0]]


def test_who_moved_furthest_counts_least_and_who_is_flagged_not_at_all() -> None:
    """The trap of the released code: without a temperature the largest norm gets nearly all the weight."""
    small, middle, large, flagged = weights([1.0, 2.0, 4.0, 1000.0], [False, False, False, True], [8.0] * 4)
    assert small > middle > large > 0 and flagged == 0
    assert small + middle + large == pytest.approx(1.0)


def test_equal_norms_count_by_samples_at_any_scale() -> None:
    for scale in (1e-8, 1.0, 1e8):
        assert weights([scale] * 3, [False] * 3, [10.0, 20.0, 10.0]) == [0.25, 0.5, 0.25]


def test_without_a_temperature_only_samples_count() -> None:
    assert weights([1.0, 9.0], [False, False], [30.0, 10.0], temperature=0.0) == [0.75, 0.25]


def test_who_did_nothing_does_not_count_and_where_nobody_is_believed_nobody_does() -> None:
    assert weights([0.0, 1.0], [False, False], [0.0, 10.0]) == [0.0, 1.0]
    assert weights([1.0, 1.0], [True, True], [10.0, 10.0]) == [0.0, 0.0]
    assert weights([0.0, 0.0], [False, False], [10.0, 10.0]) == [0.5, 0.5]


def test_the_outer_step_is_nesterov_momentum_from_where_all_were_last() -> None:
    config = EditConfig(outer_lr=0.7, outer_momentum=0.8, clip_norm=0.0)
    theirs = nn.Parameter(torch.randn(3, 4))
    ours, moments = theirs.detach().clone(), {"w": torch.zeros(3, 4)}
    reference = torch.optim.SGD([theirs], lr=0.7, momentum=0.8, nesterov=True)
    for turn in range(4):
        pseudo = torch.randn(12, generator=torch.Generator().manual_seed(turn))
        anchor = ours.clone()
        ours += 1.0  # local steps went elsewhere
        outer_step({"w": ours}, {"w": anchor}, moments, pseudo, config)
        theirs.grad = pseudo.view(3, 4)
        reference.step()
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_the_pseudo_gradient_of_a_layer_is_clipped() -> None:
    config = EditConfig(outer_lr=1.0, outer_momentum=0.0, clip_norm=5.0)
    ours: dict[str, Tensor] = {"a": torch.zeros(2), "b": torch.zeros(2)}
    anchors = {name: torch.zeros(2) for name in ours}
    moments = {name: torch.zeros(2) for name in ours}
    assert outer_step(ours, anchors, moments, torch.tensor([30.0, 0.0, 0.0, 40.0]), config) == 50.0
    assert torch.allclose(torch.cat(list(ours.values())), torch.tensor([-3.0, 0.0, 0.0, -4.0]))
