"""What a row costs, the same function in every arm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 300
"""Of a row of cost 1: about a millisecond."""
SIDE = 64


class Grind:
    """A row's value from its id, at its cost: a vector goes through a fixed matrix that often."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self._matrix = rng.standard_normal((SIDE, SIDE)) / np.sqrt(SIDE)

    def __call__(self, ids: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values of rows, one by one: what a row costs is not shared."""
        return np.array([self._one(int(i), float(c)) for i, c in zip(ids, cost, strict=True)])

    def _one(self, number: int, cost: float) -> float:
        vector = np.cos(np.arange(SIDE) * (1 + number % 1009))
        for _ in range(max(1, round(ROUNDS * cost))):
            vector = np.tanh(self._matrix @ vector + 0.1)
        return float(vector.sum()) + number % 1009
