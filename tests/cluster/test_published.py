"""The published formulas give the published table."""

from __future__ import annotations

import pytest

from shoestring.cluster.published import Setting, published_bytes, published_step_s
from shoestring.cluster.strategies import all_strategies, parse_strategy

# n = 4, m = 2, s = 4, B' = 20 B, no compute: time / GGG, bytes / parameter.
TABLE = {
    "NII": (0.125, 9),
    "III": (0.144, 8),
    "IIG": (0.144, 5),
    "NIG": (0.150, 6),
    "IGG": (0.411, 4.5),
    "NGG": (0.417, 5.5),
    "GGG": (1.0, 4),
}
SETTING = Setting(4, 2, 4, 20.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", TABLE)
def test_the_table_of_the_paper_comes_out(name: str) -> None:
    slowest = published_step_s(parse_strategy("GGG"), SETTING)
    time, size = TABLE[name]
    assert published_step_s(parse_strategy(name), SETTING) / slowest == pytest.approx(time, abs=5e-4)
    assert published_bytes(parse_strategy(name), SETTING) == size


def test_what_is_not_trained_costs_its_parameters_only() -> None:
    frozen = Setting(4, 2, 4, 20.0, 1.0, 1.0, 0.0)
    assert published_bytes(parse_strategy("NNN"), frozen) == 2
    assert published_step_s(parse_strategy("NNN"), frozen) == 0
    assert published_step_s(parse_strategy("III"), frozen) > 0


def test_states_coarser_than_gradients_have_no_published_time() -> None:
    for strategy in all_strategies():
        if "gradients" in strategy.dominated.split(":")[0]:
            with pytest.raises(ValueError, match="coarser"):
                published_step_s(strategy, SETTING)
        else:
            assert published_step_s(strategy, SETTING) > 0
