"""How many seeds a test runs with: a few always, all of them among the long tests."""

from __future__ import annotations

import pytest


def few(quick: int, of: int) -> list[object]:
    """Seeds, all but the first few among the long tests."""
    return [*range(quick), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(quick, of))]
