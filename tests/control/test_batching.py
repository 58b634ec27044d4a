"""Batch sizes are found, kept within memory, and not moved by noise."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoestring.control.batching import FULL, LEAST_LOOKS, REST, BatchSize


def work(
    batch: BatchSize, cost_s: Callable[[int], float], batches: int, noise: float = 0.0, seed: int = 0
) -> list[int]:
    """So many full batches; the sizes that they had."""
    source = random.Random(seed)
    sizes = []
    for _ in range(batches):
        size = batch.size
        sizes.append(size)
        batch.saw(size, cost_s(size) * source.lognormvariate(0.0, noise), 0)
    return sizes


def test_it_doubles_until_that_brings_nothing() -> None:
    batch = BatchSize(1, most=1024)
    sizes = work(batch, lambda n: 0.016 + 0.001 * n, 300)  # 95% of the best rate at 304 items
    assert batch.size in (128, 256)
    assert "back to" in batch.reason
    assert all(later in (size, 2 * size, size // 2) for size, later in pairwise(sizes))


def test_the_first_batch_of_a_size_does_not_count() -> None:
    batch = BatchSize(8, most=64)
    for size in (8, 16, 32, 64):
        if batch.size != size:
            break
        batch.saw(size, 100.0, 0)  # it allocates, compiles and so on
        for _ in range(LEAST_LOOKS):
            batch.saw(size, 0.1, 0)
    assert batch.size == 64


def test_a_stage_that_costs_the_same_for_each_item_keeps_its_size() -> None:
    batch = BatchSize(16, most=1024)
    work(batch, lambda n: 0.001 * n, 200)
    assert batch.size == 16


@pytest.mark.parametrize("seed", range(20))
def test_noise_leaves_it_near_the_best(seed: int) -> None:
    batch = BatchSize(1, most=512)
    sizes = work(batch, lambda n: 0.020 + 0.001 * n, 800, noise=0.2, seed=seed)
    best = 512 / (0.020 + 0.512)
    assert batch.size / (0.020 + 0.001 * batch.size) > 0.7 * best
    changes = sum(a != b for a, b in pairwise(sizes[300:]))
    assert changes <= 6


def test_batches_that_are_not_full_say_nothing() -> None:
    batch = BatchSize(64, most=512)
    for _ in range(100):
        batch.saw(int(FULL * 64) - 1, 1e-9, 0)
    assert batch.size == 64 and not batch.reason


def test_too_large_halves_and_is_never_tried_again() -> None:
    batch = BatchSize(1, most=4096)
    while batch.size < 128:
        batch.saw(batch.size, 0.1, 0)
    batch.too_large(128)
    assert batch.size == 64 and "128 items did not fit" in batch.reason
    sizes = work(batch, lambda n: 0.1, 5 * REST)
    assert max(sizes) == 64


def test_too_large_reaches_one_item_and_stays_there() -> None:
    batch = BatchSize(4, most=8, fixed=True)
    for size in (4, 2, 1, 1):
        batch.too_large(size)
    assert batch.size == 1


def test_a_size_that_was_given_is_kept() -> None:
    batch = BatchSize(32, fixed=True)
    work(batch, lambda n: 0.1, 100)
    assert batch.size == 32


def test_memory_is_foreseen() -> None:
    batch = BatchSize(1, most=4096, limit_bytes=1_000_000_000)
    for _ in range(400):
        batch.saw(batch.size, 0.1, 200_000_000 + 5_000_000 * batch.size)
    assert batch.size == 128  # 256 items would hold 1.48 GB
    assert "would need about" in batch.reason


def test_long_batches_do_not_grow() -> None:
    batch = BatchSize(2, most=4096)
    work(batch, lambda n: 5.0, 50)
    assert batch.size == 2 and "takes 5.0 s" in batch.reason


def test_after_a_long_rest_it_is_tried_again_and_follows_a_change() -> None:
    batch = BatchSize(8, most=1024)
    work(batch, lambda n: 0.001 * n, 100)
    assert batch.size == 8
    sizes = work(batch, lambda n: 0.1 + 0.001 * n, 3 * REST)  # now there is a price for each call
    assert sizes[REST // 2] == 8  # not at once
    assert batch.size >= 256


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.lists(st.tuples(st.sampled_from(("saw", "large")), st.floats(1e-6, 10.0)), max_size=400),
)
def test_bounds_always_hold(start: int, most: int, steps: list[tuple[str, float]]) -> None:
    batch, bound = BatchSize(start, most), most
    for what, number in steps:
        if what == "saw":
            batch.saw(batch.size, number, int(number * 1000))
        else:
            bound = max(1, min(bound, batch.size // 2))
            batch.too_large(batch.size)
        assert 1 <= batch.size <= bound
