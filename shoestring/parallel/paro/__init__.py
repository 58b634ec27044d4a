"""Sharded training by three letters: `paro.shard(model, optimizer, "IIG")`."""

from shoestring.parallel.paro.api import shard
from shoestring.parallel.paro.engine import Engine
from shoestring.parallel.paro.exchange import Alone, Exchange, Pending
from shoestring.parallel.paro.optimizer import GradientError, ShardedOptimizer
from shoestring.parallel.paro.state import own_tensors, state_tensors

__all__ = [
    "Alone",
    "Engine",
    "Exchange",
    "GradientError",
    "Pending",
    "ShardedOptimizer",
    "own_tensors",
    "shard",
    "state_tensors",
]
