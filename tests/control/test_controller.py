"""The controller asks its policy once an interval; the agent refuses what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from shoestring.base.errors import FleetError
from shoestring.control.agent import Agent
from shoestring.control.controller import ControlConfig, Controller
from shoestring.control.monitor import Monitor


def controller(policy: Any = "proportional") -> tuple[Controller, Monitor]:
    monitor = Monitor(15.0, 300.0)
    return Controller(ControlConfig(policy=policy, interval_s=5.0), monitor), monitor


def test_decisions_come_once_an_interval_and_are_in_force() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    assert control.decide(0.0) is None
    for at_s in (1.0, 2.0, 3.0):
        monitor.observe(at_s, "w0", 10, 1.0)
        monitor.observe(at_s, "w1", 10, 3.0)
    assert control.decide(4.9) is None
    decision = control.decide(5.0)
    assert decision is not None and decision.shares is not None
    assert control.shares == pytest.approx({"w0": 0.75, "w1": 0.25})
    assert control.decide(5.1) is None
    assert control.decide(10.0) is not None


def test_who_stays_keeps_proportions_and_newcomers_get_the_mean() -> None:
    control, monitor = controller()
    control.regroup(("w0", "w1"))
    control.decide(0.0)
    for at_s in (1.0, 2.0):
        monitor.observe(at_s, "w0", 10, 1.0)
        monitor.observe(at_s, "w1", 10, 3.0)
    control.decide(6.0)
    control.regroup(("w0", "w1", "w2"))
    assert control.shares == pytest.approx({"w0": 0.5, "w1": 1 / 6, "w2": 1 / 3})
    control.regroup(("w1",))
    assert control.shares == {"w1": 1.0}


def test_the_even_policy_never_changes_anything() -> None:
    control, monitor = controller("even")
    control.regroup(("w0", "w1"))
    control.decide(0.0)
    monitor.observe(1.0, "w0", 10, 9.0)
    decision = control.decide(6.0)
    assert decision is not None and decision.shares is None
    assert control.shares == {"w0": 0.5, "w1": 0.5}


def test_the_agent_applies_in_order_and_refuses_the_unknown() -> None:
    applied: list[Mapping[str, Any]] = []
    agent = Agent({"set": applied.append})
    agent.apply(({"kind": "set", "value": 1}, {"kind": "set", "value": 2}))
    assert [action["value"] for action in applied] == [1, 2]
    with pytest.raises(FleetError, match="'explode'"):
        agent.apply(({"kind": "explode"},))
