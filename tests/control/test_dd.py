"""The policy for unequal machines: learns what a pass costs, then splits exactly within memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shoestring.control.dd import dd
from shoestring.control.decisions import AdjustAccumulation, AdjustBatch, PolicyOptions
from shoestring.control.monitor import Cost, WorkerView
from tests.control.states import seen, state

OPTIONS = PolicyOptions()


def known(start_s: float, per_sample_s: float, sure: bool = True) -> WorkerView:
    return seen(1 / per_sample_s, cost=Cost(start_s, per_sample_s, sure))


def test_it_splits_by_what_passes_cost() -> None:
    decision = dd(0.0, state({"w0": known(0.0, 0.01), "w1": known(0.0, 0.03)}), OPTIONS)
    batch, passes = decision.actions
    assert isinstance(batch, AdjustBatch) and isinstance(passes, AdjustAccumulation)
    assert batch.shares == pytest.approx({"w0": 0.75, "w1": 0.25})
    assert passes.micro_batch == {"w0": 15, "w1": 13}
    assert decision.predicted["step_time_ratio"] == pytest.approx(0.75 / 1.5)
    assert "w0 5 x 15, w1 2 x 13" in decision.reason


def test_little_memory_means_small_passes_and_fewer_samples() -> None:
    workers = {"w0": known(0.1, 0.01), "w1": known(0.1, 0.01)}
    decision = dd(0.0, state(workers, most={"w0": 50, "w1": 5}, micro_batch={"w0": 16, "w1": 5}), OPTIONS)
    batch, passes = decision.actions
    assert isinstance(batch, AdjustBatch) and isinstance(passes, AdjustAccumulation)
    assert passes.micro_batch["w1"] <= 5
    assert batch.shares["w0"] > 2 * batch.shares["w1"]


def test_equal_passes_are_made_smaller_once_to_learn_from() -> None:
    fleet = state({"w0": known(0.0, 0.01, sure=False), "w1": known(0.0, 0.03)})
    decision = dd(0.0, fleet, OPTIONS)
    assert decision.actions == (AdjustAccumulation({"w0": 8, "w1": 16}),)
    assert "learn" in decision.reason and "w0" in decision.reason
    taken = dd(0.0, replace(fleet, micro_batch={"w0": 8, "w1": 16}), OPTIONS)
    assert isinstance(taken.actions[0], AdjustBatch)


def test_a_part_below_a_pass_is_halved_to_learn_from() -> None:
    fleet = state({"w0": known(0.0, 0.01, sure=False), "w1": known(0.0, 0.01)}, batch=20)
    assert dd(0.0, fleet, OPTIONS).actions == (AdjustAccumulation({"w0": 5, "w1": 16}),)


def test_passes_are_whole_again_once_learnt_and_nothing_else_pays() -> None:
    fleet = state({"w0": known(0.0, 0.01), "w1": known(0.0, 0.01)}, micro_batch={"w0": 8, "w1": 8}, batch=96)
    assert dd(0.0, fleet, OPTIONS).actions == (AdjustAccumulation({"w0": 16, "w1": 16}),)
    assert not dd(0.0, replace(fleet, micro_batch={"w0": 16, "w1": 16}), OPTIONS).actions


def test_nothing_is_decided_before_all_were_seen() -> None:
    decision = dd(0.0, state({"w0": known(0.0, 0.01), "w1": seen(1.0, reports=0)}), OPTIONS)
    assert not decision.actions and "w1" in decision.reason
