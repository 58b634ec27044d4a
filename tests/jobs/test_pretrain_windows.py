"""Cutting windows shorter loses no prediction, and what is cut is whole again in time."""

from __future__ import annotations

import pytest
import torch

from recipes.pretrain import demo, pretrain
from shoestring.base.errors import ConfigError
from shoestring.jobs.pretrain.config import PretrainConfig
from shoestring.jobs.pretrain.task import cut_windows, pieces_at


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_every_prediction_of_a_window_is_made_once(pieces: int) -> None:
    tokens = torch.randint(0, 1000, (3, 65), generator=torch.Generator().manual_seed(0))
    cut = cut_windows(tokens, pieces)
    assert cut.shape == (3 * pieces, 64 // pieces + 1)
    assert torch.equal(cut[:, :-1].reshape(3, 64), tokens[:, :-1])
    assert torch.equal(cut[:, 1:].reshape(3, 64), tokens[:, 1:])


def test_pieces_are_halved_in_equal_stages() -> None:
    assert [pieces_at(share, 8, 0.6) for share in (0.0, 0.19, 0.21, 0.39, 0.41, 0.59, 0.6, 1.0)] == [
        8, 8, 4, 4, 2, 2, 1, 1,
    ]  # fmt: skip
    assert pieces_at(0.0, 1, 0.5) == 1
    assert pieces_at(0.0, 4, 0.0) == 1


@pytest.mark.parametrize(("seq_len", "pieces"), [(256, 3), (100, 8)])
def test_windows_that_cannot_be_cut_are_refused(seq_len: int, pieces: int) -> None:
    model = pretrain().model
    with pytest.raises(ConfigError, match="cannot be cut"):
        PretrainConfig(model=model, seq_len=seq_len, short_pieces=pieces)


@pytest.mark.parametrize("config", [demo(), pretrain()], ids=["demo", "pretrain"])
def test_recipes_end_with_the_windows_that_they_are_scored_with(config: PretrainConfig) -> None:
    assert pieces_at(0.99, config.short_pieces, config.short_until) == 1
    assert config.evaluate.window <= config.seq_len
