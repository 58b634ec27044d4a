"""Position -> sample: a seeded permutation with no state (source: ours; Feistel networks with cycle
walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoestring.base.errors import DataError

Shuffle = Literal["none", "shards", "samples"]
ROUNDS = 6


def permute(values: NDArray[np.int64], size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A bijection of [0, size), fixed by (seed, epoch); int64 [n] -> int64 [n]."""
    if size <= 1:
        return np.zeros_like(values)
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    sequence = np.random.SeedSequence([seed & (2**63 - 1), epoch])
    keys = sequence.generate_state(ROUNDS, np.uint64).astype(np.uint64)
    result = values.astype(np.uint64)
    pending = np.arange(len(result))
    while len(pending):
        # The network permutes a power of four; what falls outside walks on until it is inside.
        result[pending] = _feistel(result[pending], half_bits, keys)
        pending = pending[result[pending] >= size]
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << shift) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Order:
    """Which sample stands at which position of the run.

    Attributes:
        samples: samples of an epoch (N); position p belongs to epoch p // N.
        shuffle: `none`; `samples`: each epoch a permutation of its own; `shards`: runs of `shard_size`
            neighbouring samples stay together and are permuted as wholes (a short last one stays last).
    """

    samples: int
    epochs: int = 1
    seed: int = 0
    shuffle: Shuffle = "samples"
    shard_size: int = 1024

    def sample_ids(self, start: int, length: int) -> NDArray[np.int64]:
        """The samples at positions [start, start + length), int64 [length].

        Raises:
            DataError: the range leaves [0, samples * epochs).
        """
        if start < 0 or length < 0 or start + length > self.samples * self.epochs:
            raise DataError(
                f"positions {start} to {start + length} are not among {self.epochs} epochs of {self.samples}",
                "use the settings that the run was started with",
            )
        positions = np.arange(start, start + length, dtype=np.int64)
        epochs, within = positions // self.samples, positions % self.samples
        for epoch in np.unique(epochs):
            here = epochs == epoch
            within[here] = self._shuffled(within[here], int(epoch))
        return within

    def locate(self, position: int) -> tuple[int, int]:
        """(epoch, sample) of one position.

        Raises:
            DataError: there is no such position.
        """
        return position // self.samples, int(self.sample_ids(position, 1)[0])

    def _shuffled(self, within: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        if self.shuffle == "none":
            return within
        if self.shuffle == "samples":
            return permute(within, self.samples, self.seed, epoch)
        whole = self.samples // self.shard_size
        shards, offsets = within // self.shard_size, within % self.shard_size
        inside = shards < whole
        shards[inside] = permute(shards[inside], whole, self.seed, epoch)
        return shards * self.shard_size + offsets
