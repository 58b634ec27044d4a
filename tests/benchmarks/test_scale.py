"""The measure of thousands of workers, on a few: each gets its orders, and its speed is known."""

from __future__ import annotations

from pathlib import Path

from benchmarks.stragglers import scale
from shoestring.fleet import messages as m


def test_a_step_of_all_workers_goes_through_the_real_coordinator() -> None:
    (row,) = scale.measure((12,))
    assert row["workers"] == 12 and row["messages"] == 24  # each asks, and says what it has done
    assert all(row[key] > 0 for key in ("nd_ms", "dd_ms", "nd-backup_ms", "step_ms", "message_us"))


def test_the_samples_of_a_step_are_those_that_were_asked_for(tmp_path: Path) -> None:
    fleet = scale._Fleet(tmp_path, 12, "nd")
    fleet.begin()
    fleet.step(1)
    first = [order.ranges for order in fleet._orders.values()]
    fleet.step(2)
    second = [order.ranges for order in fleet._orders.values()]
    taken = [p for ranges in (*first, *second) for start, stop in ranges for p in range(start, stop)]
    assert len(taken) == len(set(taken)) == 2 * 12 * scale.SAMPLES
    assert all(isinstance(order, m.Order) and order.tell for order in fleet._orders.values())
