"""What a change of the ranks must not change, without any ranks."""

from __future__ import annotations

import torch
from torch import nn

from shoestring.cluster.strategies import Layout, parse_strategy
from shoestring.parallel import paro
from shoestring.parallel.paro.exchange import Alone
from shoestring.parallel.paro.plain import PlainExchange


def test_the_norm_goes_by_the_ranks_that_are_there() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    four = PlainExchange(Layout(((0, 1, 2, 3),)), 0)
    optimizer = paro.shard(model, torch.optim.SGD(model.parameters(), lr=0.1), "NNN", exchange=four, units=())
    optimizer.engine.rewire(PlainExchange(Layout(((0,),)), 0), parse_strategy("NNN"))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.reduce()
    optimizer.take(optimizer.facts(), 1.0)
    # The gradient of each of six weights and two biases is 1.
    assert abs(optimizer.norm - 8**0.5) < 1e-6


def test_parameters_that_were_not_published_are_not_offered() -> None:
    model = nn.Linear(3, 2)
    optimizer = paro.shard(model, torch.optim.SGD(model.parameters(), lr=0.1), "NNG", exchange=Alone())
    assert optimizer.engine.synced
    model(torch.ones(1, 3)).sum().backward()
    optimizer.reduce()
    optimizer.take(optimizer.facts(), 1.0)
    optimizer.update()
    assert not optimizer.engine.synced
    optimizer.engine.publish()
    assert optimizer.engine.synced
