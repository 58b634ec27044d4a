"""The compute dtype is chosen by what was measured."""

from __future__ import annotations

import torch

from shoestring.base.clock import FakeClock
from shoestring.models.precision import matmul_rates, quickest_dtype


class _Stopwatch(FakeClock):
    """Shows the given spans, one for each pair of readings."""

    def __init__(self, spans_s: list[float]) -> None:
        super().__init__()
        self._spans_s = [part for span_s in spans_s for part in (0.0, span_s)]

    def now(self) -> float:
        self.advance(self._spans_s.pop(0))
        return super().now()


def test_the_quicker_type_wins_and_bf16_wins_a_tie() -> None:
    cpu = torch.device("cpu")
    assert quickest_dtype(cpu, _Stopwatch([1.0] * 6 + [2.0] * 6)) == "bf16"
    assert quickest_dtype(cpu, _Stopwatch([2.0] * 6 + [1.0] * 6)) == "fp32"
    assert quickest_dtype(cpu, _Stopwatch([1.0] * 12)) == "bf16"


def test_rates_are_operations_over_the_best_span_without_the_first() -> None:
    rates = matmul_rates(torch.device("cpu"), _Stopwatch([0.001, 4.0, 2.0, 4.0, 4.0, 4.0] + [4.0] * 6))
    assert rates["bf16"] == 2 * 1024**3 / 2.0
    assert rates["fp32"] == 2 * 1024**3 / 4.0
