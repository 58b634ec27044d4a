"""Inputs: rows with a cost, in files; seeded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

SIGMA = 0.25
"""Of the logarithm of a file's cost, for each step of skew: 4 is a lognormal of sigma 1."""


def costs(rows: int, files: int, skew: float, seed: int) -> NDArray[np.float64]:
    """Cost of each row, mean 1: lognormal by file (what is long stands together), and by row half as much.

    Args:
        skew: 0 (all alike) to 4.
    """
    rng = np.random.default_rng(seed)
    of_file = np.exp(SIGMA * skew * rng.standard_normal(files))
    of_row = np.exp(SIGMA / 2 * skew * rng.standard_normal(rows))
    found = of_file[np.arange(rows) * files // rows] * of_row
    scaled: NDArray[np.float64] = found / found.mean()
    return scaled


def write_costs(folder: Path, cost: NDArray[np.float64], files: int) -> None:
    """Parquet files of `id` int64 and `cost` float64."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.arange(len(cost), dtype=np.int64)
    for number in range(files):
        part = slice(*(len(cost) * at // files for at in (number, number + 1)))
        table = pa.table({"id": ids[part], "cost": cost[part]})
        pq.write_table(table, folder / f"in-{number:04d}.parquet")


def write_ids(folder: Path, rows: int, files: int) -> None:
    """Parquet files of `id` alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        first, last = (rows * at // files for at in (number, number + 1))
        pq.write_table(pa.table({"id": np.arange(first, last)}), folder / f"in-{number:04d}.parquet")


def write_small(folder: Path, rows: int, files: int) -> None:
    """Parquet files of `id` int64 and `x` float32, x = id mod 1000."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        first, last = (rows * at // files for at in (number, number + 1))
        ids = np.arange(first, last)
        table = pa.table({"id": ids, "x": (ids % 1000).astype(np.float32)})
        pq.write_table(table, folder / f"in-{number:04d}.parquet")


def write_images(folder: Path, images: int, files: int, most: int, side: int, seed: int) -> NDArray[np.int64]:
    """Parquet files of `id`, `objects` (0 .. most) and `pixels` (uint8, side x side x 3, as a list).

    Returns:
        The objects of each image.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    objects = rng.integers(0, most + 1, images)
    for number in range(files):
        first, last = (images * at // files for at in (number, number + 1))
        flat = rng.integers(0, 256, ((last - first), side * side * 3), dtype=np.uint8)
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), side * side * 3)
        table = pa.table({"id": np.arange(first, last), "objects": objects[first:last], "pixels": pixels})
        pq.write_table(table, folder / f"in-{number:04d}.parquet")
    return objects
