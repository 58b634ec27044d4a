"""Islands are found from noisy rates, however many and however uneven, and none are seen where none are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from shoestring.cluster.clustering import Grouping, find_groups, pair_of
from shoestring.cluster.pairing import RANDOM_ROUNDS, next_round

FAST = 1e9


def label_groups(labels: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """What should be found: ranks by label, in order of appearance."""
    return tuple(
        tuple(rank for rank, other in enumerate(labels) if other == label) for label in dict.fromkeys(labels)
    )


def noisy_rate(labels: Sequence[int], one: int, other: int, ratio: float, rng: np.random.Generator) -> float:
    """20% of noise on a link."""
    return FAST / (1 if labels[one] == labels[other] else ratio) * max(0.3, 1 + 0.2 * rng.standard_normal())


def search(labels: Sequence[int], ratio: float, seed: int) -> tuple[Grouping, int]:
    """Measure as a probe does; the groups found, and after how many rounds."""
    rng, rates, rounds = np.random.default_rng(seed), dict[tuple[int, int], float](), 0
    while plan := next_round(len(labels), rounds, rates).pairs:
        rates |= {pair: noisy_rate(labels, *pair, ratio, rng) for pair in plan}
        rounds += 1
    return find_groups(len(labels), rates), rounds


@pytest.mark.parametrize("ratio", [5.0, 20.0])
@pytest.mark.parametrize("groups", range(1, 9))
def test_one_to_eight_uneven_groups_are_found_in_noise(groups: int, ratio: float) -> None:
    for seed in range(6):
        rng = np.random.default_rng(100 * groups + seed)
        sizes = [2 + int(rng.integers(0, 1 + 14 // groups)) for _ in range(groups)]
        labels = [number for number, size in enumerate(sizes) for _ in range(size)]
        if seed % 2:
            rng.shuffle(labels)
        found, _ = search(labels, ratio, seed)
        assert found.groups == label_groups(labels), (sizes, found.reason)
        assert found.ratio == pytest.approx(ratio, rel=0.3) if groups > 1 else found.ratio == 1.0


@pytest.mark.parametrize("size", [24, 64, 100])
def test_few_islands_of_many_workers_take_about_log_n_rounds(size: int) -> None:
    for seed in range(3):
        labels = [min(3, rank * 4 // size + (rank % 5 == 0)) for rank in range(size)]
        found, rounds = search(labels, 20.0, seed)
        assert found.groups == label_groups(labels)
        assert rounds <= 2 * (size - 1).bit_length() + RANDOM_ROUNDS


def test_many_small_islands_far_apart_need_more_rounds_but_are_found() -> None:
    labels = [rank % 16 for rank in range(32)]
    found, rounds = search(labels, 20.0, 1)
    assert found.groups == label_groups(labels)
    assert 5 < rounds < 31


def test_the_best_of_many_equal_links_is_no_island() -> None:
    for size in (3, 8, 16, 40, 96):
        found, rounds = search([0] * size, 1.0, size)
        assert len(found.groups) == 1 and found.ratio == 1.0, found.reason
        assert "one group" in found.reason
        assert size <= 16 or rounds == (size - 1).bit_length() + RANDOM_ROUNDS


def test_a_lone_slow_worker_stands_alone() -> None:
    labels = [0, 0, 0, 0, 1]
    rates = {(i, j): FAST / (10 if j == 4 else 1) for j in range(5) for i in range(j)}
    assert find_groups(5, rates).groups == label_groups(labels)


def test_unmeasured_parts_stay_apart_and_the_reason_says_so() -> None:
    found = find_groups(4, {(0, 1): FAST, (2, 3): FAST})
    assert found.groups == ((0, 1), (2, 3)) and "nothing was measured between" in found.reason
    assert find_groups(1, {}).groups == ((0,),)
    assert found.of(3) == 1 and pair_of(3, 1) == (1, 3)


def test_the_reason_has_the_numbers() -> None:
    rates = {pair: FAST / (1 if pair in ((0, 1), (2, 3)) else 8) for pair in ((0, 1), (2, 3), (0, 2), (1, 3))}
    assert find_groups(4, rates).reason.startswith("2 groups of 2, 2: rates inside are 8 times those between")
