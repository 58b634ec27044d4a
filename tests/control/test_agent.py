"""The agent holds what each order says, and nothing from before."""

from __future__ import annotations

import pytest

from shoestring.control.agent import Agent


def test_an_order_replaces_all_that_held_before() -> None:
    agent = Agent(16)
    agent.take(micro_batch=4, passes=3, lr_factor=0.5)
    assert (agent.micro_batch, agent.passes, agent.lr_factor) == (4, 3, 0.5)
    agent.take(micro_batch=0, passes=0, lr_factor=1.0)
    assert (agent.micro_batch, agent.passes, agent.lr_factor) == (16, 0, 1.0)


@pytest.mark.parametrize(
    ("samples", "together", "passes"), [(9, False, 3), (9, True, 5), (24, True, 6), (0, False, 0)]
)
def test_passes_cover_the_samples_and_the_others_where_they_go_together(
    samples: int, together: bool, passes: int
) -> None:
    agent = Agent(16)
    agent.take(micro_batch=4, passes=5, lr_factor=1.0)
    assert agent.passes_for(samples, together) == passes
