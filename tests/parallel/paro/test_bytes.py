"""What a rank holds is what the formulas say (source: shared design of PaRO; see docs/design/parallel.md)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoestring.cluster.strategies import BUILT, Layout, equal_groups, parse_strategy
from tests.parallel.paro import toys

LAYOUTS = [equal_groups(4, 2), equal_groups(8, 4), Layout(((0, 2), (3, 1)))]
SLACK = 0.02


class Wide(nn.Module):
    """Layers of which one is trained, or all."""

    def __init__(self, trained: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(96, 101) for _ in range(4))
        for layer in self.layers[trained:]:
            layer.requires_grad_(False)


@pytest.mark.parametrize("trained", [4, 1])
@pytest.mark.parametrize("strategy", BUILT)
def test_bytes_are_those_of_the_formulas(strategy: str, trained: int) -> None:
    """2 P / d_p + 2 P' / d_g + 12 P' / d_os at bf16 with AdamW."""
    letters = parse_strategy(strategy)
    for layout in LAYOUTS:
        for rank in range(layout.size):
            model, optimizer = toys.sharded(
                lambda: Wide(trained), strategy, toys.Nobody(layout, rank), dtype=torch.bfloat16
            )
            parameters, own = 4 * 97 * 101, trained * 97 * 101
            found = [flat.bytes() for flat in optimizer.engine.flats]
            wanted = {
                "parameters": 2 * parameters / layout.parts(letters.parameters),
                "gradients": 2 * own / layout.parts(letters.gradients),
                "states": 12 * own / layout.parts(letters.states),
            }
            for kind, amount in wanted.items():
                assert sum(one[kind] for one in found) == pytest.approx(amount, rel=SLACK), (
                    kind,
                    layout,
                    rank,
                )
            held = sum(flat.full.untyped_storage().nbytes() for flat in optimizer.engine.flats)
            assert held == (
                sum(f.parameters.nbytes for f in optimizer.engine.flats) if strategy[0] == "N" else 0
            )
            assert all(p.untyped_storage().nbytes() in (0, held // 4) for p in model.parameters())


@pytest.mark.parametrize("strategy", BUILT)
def test_fp32_needs_no_second_copy_of_the_parameters(strategy: str) -> None:
    letters, layout = parse_strategy(strategy), LAYOUTS[0]
    _, optimizer = toys.sharded(lambda: Wide(4), strategy, toys.Nobody(layout, 3))
    states = sum(flat.bytes()["states"] for flat in optimizer.engine.flats)
    assert states == pytest.approx(8 * 4 * 97 * 101 / layout.parts(letters.states), rel=SLACK)
