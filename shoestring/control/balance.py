"""Parts of the global batch for workers of known cost: the integer programme of AntDT's DD policy.

    minimise  max_i  C_i a_i + c_i n_i      subject to  sum n_i = B,  n_i >= least_i,
                                            C_i = ceil(n_i / most_i)

T_i(b) = a_i + c_i b is the time of a pass over b samples (linear, as the paper fits it), so C passes that
share n samples take C a_i + c_i n, however they share them. The paper writes sum C_i b_i = B with equal
passes; here the passes of a worker may differ by a sample, which reaches every B and is never slower. Solved
exactly: the time of a worker grows with n_i, so a bound on the time bounds each n_i, and the least bound that
holds B is found by bisection, then to the sample by giving out what is left to whoever is quickest with one
more (ours).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 60
"""Of bisection: to the last bits of a float."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A worker's cost and bounds.

    Attributes:
        start_s, per_sample_s: T(b) = start_s + per_sample_s b, s; at least one is above 0.
        most: samples of a pass at most (memory).
        least: samples that it gets at least.
    """

    start_s: float
    per_sample_s: float
    most: int
    least: int = 0

    def seconds(self, samples: int) -> float:
        """Of so many samples in as few passes as hold them."""
        return self.start_s * math.ceil(samples / self.most) + self.per_sample_s * samples


def balance(parts: Sequence[Part], total: int) -> list[int]:
    """Samples of each worker; they sum to `total`.

    Raises:
        ValueError: the least that all have to get is more than `total`, or a part makes no sense.
    """
    least = np.array([part.least for part in parts], dtype=np.int64)
    if not parts or int(least.sum()) > total:
        raise ValueError(f"{len(parts)} workers get {int(least.sum())} samples at least, there are {total}")
    if any(
        p.most < 1 or p.start_s < 0 or p.per_sample_s < 0 or p.start_s + p.per_sample_s <= 0 for p in parts
    ):
        raise ValueError("a worker needs some time for a pass, and room for a sample")
    start_s = np.array([part.start_s for part in parts])
    per_s = np.array([part.per_sample_s for part in parts])
    most = np.array([part.most for part in parts], dtype=np.int64)
    low, high = 0.0, max(part.seconds(total) for part in parts)
    for _ in range(ROUNDS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        held = np.maximum(least, _held(middle, start_s, per_s, most, total))
        low, high = (middle, high) if int(held.sum()) <= total else (low, middle)
    samples = [int(n) for n in np.maximum(least, _held(low, start_s, per_s, most, total))]
    return _give_out(parts, samples, total)


def _held(bound_s: float, start_s: Floats, per_s: Floats, most: Ints, total: int) -> Ints:
    """Samples that each worker can do within the bound: whole passes, then what fits into one more."""
    full_s = start_s + per_s * most
    passes = np.minimum(np.floor(bound_s / full_s), float(total))
    rest_s = bound_s - passes * full_s - start_s
    room = np.where(per_s > 0, np.floor(rest_s / np.where(per_s > 0, per_s, 1.0)), most)
    more = np.clip(np.where(rest_s > 0, room, 0), 0, most)
    held: Ints = np.minimum(passes * most + more, total).astype(np.int64)
    return held


def _give_out(parts: Sequence[Part], samples: list[int], total: int) -> list[int]:
    """What is left, one by one, to whoever is through first with one more; ties to the first."""
    left = total - sum(samples)
    heap = [(part.seconds(n + 1), i) for i, (part, n) in enumerate(zip(parts, samples, strict=True))]
    heapq.heapify(heap)
    for _ in range(left):
        _, i = heap[0]
        samples[i] += 1
        heapq.heapreplace(heap, (parts[i].seconds(samples[i] + 1), i))
    return samples
