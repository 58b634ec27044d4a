"""The agent applies actions in order, and refuses what it does not know."""

from __future__ import annotations

import pytest

from shoestring.base.errors import FleetError
from shoestring.control.agent import Agent


def test_actions_are_applied_in_order() -> None:
    seen: list[float] = []
    agent = Agent({"adjust_lr": lambda action: seen.append(action["factor"])})
    agent.apply(({"kind": "adjust_lr", "factor": 0.5}, {"kind": "adjust_lr", "factor": 0.25}))
    assert seen == [0.5, 0.25]


def test_an_unknown_action_is_an_error_not_ignored() -> None:
    with pytest.raises(FleetError, match="explode"):
        Agent({}).apply(({"kind": "explode"},))
