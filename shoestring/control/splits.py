"""From shares to whole samples (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping


def split(total: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`total` samples by shares, whole numbers that sum to `total` (largest remainder; ties by name)."""
    exact = {worker: total * share for worker, share in shares.items()}
    parts = {worker: int(value) for worker, value in exact.items()}
    by_remainder = sorted(exact, key=lambda worker: (parts[worker] - exact[worker], worker))
    for worker in by_remainder[: total - sum(parts.values())]:
        parts[worker] += 1
    return parts
