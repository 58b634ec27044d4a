"""The other policies: static, fixed, LB-BSP; and whole parts of a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.control.decisions import AdjustBatch, PolicyOptions, UseBackups
from shoestring.control.nd import nd
from shoestring.control.policies import backup, fixed, lb_bsp, nd_backup, none
from shoestring.control.splits import split
from tests.control.states import seen, state

OPTIONS = PolicyOptions()
FLEET = state({"w0": seen(30.0), "w1": seen(10.0)})


def test_none_leaves_the_batch_alone() -> None:
    assert not none(0.0, FLEET, OPTIONS).actions


def test_fixed_names_the_split() -> None:
    (action,) = fixed(0.0, FLEET, PolicyOptions(fixed={"w0": 3.0, "w1": 1.0})).actions
    assert isinstance(action, AdjustBatch) and action.shares == pytest.approx({"w0": 0.75, "w1": 0.25})
    assert not fixed(0.0, FLEET, PolicyOptions(fixed={"w0": 1.0, "w1": 1.0})).actions


def test_lb_bsp_follows_the_newest_report_at_once() -> None:
    (action,) = lb_bsp(0.0, FLEET, OPTIONS).actions
    assert isinstance(action, AdjustBatch) and action.shares == pytest.approx({"w0": 0.75, "w1": 0.25})
    assert not lb_bsp(0.0, state({"w0": seen(30.0), "w1": seen(1.0, 0)}), OPTIONS).actions


def test_backup_asks_once_for_as_many_as_leave_somebody() -> None:
    asked = backup(0.0, FLEET, PolicyOptions(backups=3, grace_share=0.1)).actions
    assert asked == (UseBackups(1, 0.1),)
    in_force = replace(FLEET, backups=(1, 0.1))
    assert not backup(0.0, in_force, PolicyOptions(backups=3, grace_share=0.1)).actions


def test_nd_backup_splits_as_nd_does_and_asks_once_for_backups() -> None:
    first = nd_backup(0.0, FLEET, OPTIONS)
    assert first.actions == (*nd(0.0, FLEET, OPTIONS).actions, UseBackups(1, OPTIONS.grace_share))
    in_force = replace(FLEET, backups=(1, OPTIONS.grace_share))
    assert nd_backup(0.0, in_force, OPTIONS) == nd(0.0, in_force, OPTIONS)


@given(
    st.dictionaries(st.sampled_from([f"w{i}" for i in range(8)]), st.floats(0.1, 1000.0), min_size=1),
    st.integers(0, 100_000),
)
def test_a_split_is_whole_and_sums_to_the_total(raw: dict[str, float], total: int) -> None:
    shares = {name: value / sum(raw.values()) for name, value in raw.items()}
    parts = split(total, shares)
    assert sum(parts.values()) == total
    assert all(abs(parts[name] - total * shares[name]) < 1 + 1e-6 for name in parts)


def test_a_split_breaks_ties_by_name() -> None:
    assert split(5, {"w1": 0.5, "w0": 0.5}) == {"w0": 3, "w1": 2}
