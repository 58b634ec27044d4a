"""Four ranks in two groups train like one process, whatever the strategy and the model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from shoestring.base.errors import ConfigError
from shoestring.cluster.strategies import BUILT
from shoestring.parallel import paro
from shoestring.parallel.paro.over_rings import RingExchange
from tests.parallel.paro import toys
from tests.parallel.paro.ranks import TWO_BY_TWO, in_ranks, mean_over_ranks, rings

TOLERANCE = 1e-5
LONG = ("IIG", "GGG")


def check_parity(folder: Path, build: toys.Build, most: int, least: int) -> None:
    """Loss before each step, fp32: `most` steps under the strategies in LONG, `least` under the others."""
    all_wanted, _ = toys.alone(build, 4, most)

    def body(rank: int) -> None:
        with rings(TWO_BY_TWO, rank) as exchange:
            for strategy in BUILT:
                steps = most if strategy in LONG else least
                wanted = all_wanted[:steps]
                model, optimizer = toys.sharded(build, strategy, exchange)
                found = mean_over_ranks(toys.train(model, optimizer, rank, range(steps)))
                assert found[-1] < found[0], strategy
                assert toys.worst(found, wanted) < TOLERANCE, (strategy, found[-1], wanted[-1])

    in_ranks(4, folder, body)


@pytest.mark.parametrize("build", [toys.moe, toys.tied, toys.frozen], ids=lambda build: build.__name__)
def test_losses_of_50_steps_equal_those_of_one_process(build: toys.Build, tmp_path: Path) -> None:
    check_parity(tmp_path, build, 50, 10)


def test_a_hugging_face_model_is_sharded_unchanged(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the Hugging Face model needs transformers")
    config = transformers.LlamaConfig(
        vocab_size=toys.WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip

    check_parity(tmp_path, lambda: transformers.LlamaForCausalLM(config), 5, 5)


def test_two_lines_are_enough(tmp_path: Path) -> None:
    """Groups are those of the launcher; rings are made over the default process group."""
    wanted, _ = toys.alone(toys.tied, 4, 3)

    def body(rank: int) -> None:
        os.environ["LOCAL_WORLD_SIZE"] = "3"
        torch.manual_seed(0)
        model = toys.tied()
        with pytest.raises(ConfigError, match="groups of 3 do not divide 4 ranks"):
            paro.shard(model, toys.adamw(model))
        os.environ["LOCAL_WORLD_SIZE"] = "2"
        optimizer = paro.shard(model, toys.adamw(model))
        exchange = optimizer.engine.exchange
        assert isinstance(exchange, RingExchange)
        assert (exchange.layout, optimizer.engine.strategy.name) == (TWO_BY_TWO, "IIG")
        found = mean_over_ranks(toys.train(model, optimizer, rank, range(3)))
        exchange.close()
        assert toys.worst(found, wanted) < TOLERANCE

    in_ranks(4, tmp_path, body)


def test_one_process_needs_no_network() -> None:
    wanted, _ = toys.alone(toys.tied, 1, 3)
    for strategy in BUILT:
        torch.manual_seed(0)
        model = toys.tied()
        optimizer = paro.shard(model, toys.adamw(model), strategy)
        assert toys.worst(toys.train(model, optimizer, 0, range(3)), wanted) < TOLERANCE, strategy
