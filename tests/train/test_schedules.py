"""Schedules: warm-up from near zero, the shapes that their names promise, the floor at the end."""

from __future__ import annotations

import math

import pytest

from shoestring.train.schedules import ScheduleConfig, factor


def test_warm_up_grows_and_its_first_step_is_not_wasted() -> None:
    config = ScheduleConfig(kind="constant", warmup=0.1)
    assert 0 < factor(0.0, config) < 0.02
    assert factor(0.05, config) == pytest.approx(0.5)
    assert factor(0.1, config) == factor(1.0, config) == 1.0


def test_wsd_stays_and_then_falls_in_a_line_to_its_floor() -> None:
    config = ScheduleConfig(kind="wsd", warmup=0.0, decay=0.4, floor=0.1)
    assert factor(0.3, config) == factor(0.6, config) == 1.0
    assert factor(0.8, config) == pytest.approx(0.55)
    assert factor(1.0, config) == pytest.approx(0.1)


def test_cosine_and_inverse_root() -> None:
    cosine = ScheduleConfig(kind="cosine", warmup=0.0, floor=0.2)
    assert [factor(p, cosine) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.6, 0.2])
    root = ScheduleConfig(kind="inverse_sqrt", warmup=0.04)
    assert factor(0.04, root) == 1.0 and factor(0.64, root) == pytest.approx(math.sqrt(0.04 / 0.64))
