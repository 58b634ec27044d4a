"""The order of samples: a bijection in each epoch, the same for ever, cheap at any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.errors import DataError
from shoestring.data.shuffle import Order, Shuffle, permute

SHUFFLES: tuple[Shuffle, ...] = ("none", "shards", "samples")


@given(
    st.integers(1, 400), st.integers(1, 3), st.integers(-(2**40), 2**70), st.sampled_from(SHUFFLES),
    st.integers(1, 50),
)  # fmt: skip
def test_each_epoch_has_each_sample_once(
    n: int, epochs: int, seed: int, shuffle: Shuffle, shard: int
) -> None:
    ids = Order(n, epochs, seed, shuffle, shard).sample_ids(0, n * epochs)
    for epoch in range(epochs):
        assert sorted(ids[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


@given(st.data(), st.sampled_from(SHUFFLES))
def test_a_part_is_the_same_as_in_the_whole(data: st.DataObject, shuffle: Shuffle) -> None:
    order = Order(37, 3, 5, shuffle, 10)
    whole = order.sample_ids(0, 111)
    start = data.draw(st.integers(0, 110))
    stop = data.draw(st.integers(start, 111))
    assert order.sample_ids(start, stop - start).tolist() == whole[start:stop].tolist()
    assert order.locate(start) == (start // 37, whole[start])


def test_shards_move_as_wholes() -> None:
    ids = Order(1000, 1, 3, "shards", 100).sample_ids(0, 1000).reshape(10, 100)
    assert (np.diff(ids, axis=1) == 1).all() and (ids[:, 0] % 100 == 0).all()
    assert ids[:, 0].tolist() != sorted(ids[:, 0].tolist())


def test_epochs_and_seeds_differ() -> None:
    seen = {tuple(Order(50, 4, seed).sample_ids(50 * epoch, 50)) for seed in range(20) for epoch in range(4)}
    assert len(seen) == 80


@pytest.mark.parametrize("size", [2, 3, 5, 17])
def test_no_sample_prefers_a_place(size: int) -> None:
    draws = 2000
    first = Counter(int(permute(np.zeros(1, dtype=np.int64), size, seed, 0)[0]) for seed in range(draws))
    expected = draws / size
    chi2 = sum((first[sample] - expected) ** 2 / expected for sample in range(size))
    # 5 standard deviations above the mean of chi-square with size - 1 degrees of freedom.
    assert chi2 < size - 1 + 5 * (2 * (size - 1)) ** 0.5


def test_neighbours_are_torn_apart() -> None:
    ids = permute(np.arange(10_000), 10_000, 1, 0)
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.05 > abs(np.corrcoef(np.arange(10_000), ids)[0, 1])


def test_a_billion_samples_cost_no_memory() -> None:
    ids = Order(10**9, 2, 7).sample_ids(10**9 - 500, 1000)
    assert len(set(ids[:500].tolist())) == 500 == len(set(ids[500:].tolist()))
    assert ids.min() >= 0 and ids.max() < 10**9


@pytest.mark.parametrize(("start", "length"), [(-1, 1), (0, -1), (15, 6), (20, 1)])
def test_positions_outside_are_refused(start: int, length: int) -> None:
    with pytest.raises(DataError, match="not among"):
        Order(10, 2).sample_ids(start, length)


def test_the_order_is_the_same_for_ever(golden: Callable[[str, str], None]) -> None:
    lines = [
        f"{n} {shuffle} {' '.join(map(str, Order(n, 2, 11, shuffle, 8).sample_ids(0, min(2 * n, 40))))}"
        for n in (1, 2, 7, 30, 10**9) for shuffle in SHUFFLES
    ]  # fmt: skip
    golden("shuffle.txt", "\n".join(lines) + "\n")
