"""The pre-training Task: packed tokens in, next-token loss out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from shoestring.data.tokens import TokenDataset
from shoestring.jobs.pretrain.config import PretrainConfig, Ready
from shoestring.models.moe_lm import layout
from shoestring.models.moe_lm.model import MoeLM
from shoestring.train.muon import build_optimizer
from shoestring.train.task import BaseTask, LossOut, ParallelLayout, SampleIds, StepContext

STATS = ("expert_load", "router_logit_sum", "router_logit_sq_sum")


class PretrainTask(BaseTask):
    """A sample is a window of `seq_len` + 1 tokens of the packed text.

    Args:
        config: the job's settings.
        dataset: the packed training tokens.
    """

    metrics = ("balance", "router_z", "bits_per_token")
    counts = ("tokens",)

    def __init__(self, config: PretrainConfig, dataset: TokenDataset) -> None:
        self._config = config
        self._dataset = dataset
        self.samples = len(dataset)

    def build(self, device: torch.device) -> nn.Module:
        """The model at the vocabulary that the tokenizer has."""
        with torch.device(device):
            # On the meta device there is nothing to draw values for.
            return MoeLM(self._config.model, seed=None if device.type == "meta" else self._config.train.seed)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Muon for matrices, AdamW for the rest, as the settings say."""
        return build_optimizer(model, self._config.optimizer)

    def load(self, ids: SampleIds) -> Tensor:
        """int64 [B, seq_len + 1]."""
        return torch.from_numpy(self._dataset.batch(ids))

    def loss(self, model: nn.Module, batch: Tensor, ids: SampleIds, context: StepContext) -> LossOut:
        """Sums over the tokens of these windows; the balance loss is per window, so it is a sum too."""
        assert isinstance(model, MoeLM)
        pieces = pieces_at(context.progress, self._config.short_pieces, self._config.short_until)
        tokens = cut_windows(batch, pieces).to(next(model.parameters()).device, non_blocking=True)
        piece_ids = [sample * pieces + piece for sample in ids.tolist() for piece in range(pieces)]
        out = model.loss(tokens, step=context.step, sample_ids=piece_ids, seed=context.seed)
        return LossOut(
            out.loss_sum,
            out.weight,
            {
                "balance": out.stats["balance_sum"],
                "router_z": out.stats["z_sum"],
                "bits_per_token": out.stats["nll_sum"] / torch.log(torch.tensor(2.0)),
            },
            {"tokens": out.weight},
            {"tokens": out.stats["tokens"]} | {name: out.stats[name] for name in STATS},
        )

    def stats(self, model: nn.Module) -> dict[str, Tensor]:
        """Zeros [L, E] for each router statistic, and the number of tokens."""
        shape = (self._config.model.layers, self._config.model.experts)
        return {"tokens": torch.zeros(())} | {name: torch.zeros(shape) for name in STATS}

    def absorb(self, model: nn.Module, stats: dict[str, Tensor]) -> None:
        """Move the routers' running means and deviations."""
        assert isinstance(model, MoeLM)
        model.absorb({name: value.float() for name, value in stats.items()})

    def parallel_layout(self, model: nn.Module) -> ParallelLayout:
        """By blocks; the router stays in fp32."""
        assert isinstance(model, MoeLM)
        return ParallelLayout(layout.units(model), layout.METHODS, layout.keeps_fp32, self._initial)

    def _initial(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        assert isinstance(model, MoeLM)
        return layout.initial_values(model, self._config.train.seed)


def pieces_at(progress: float, pieces: int, until: float) -> int:
    """Into how many pieces windows are cut: `pieces` at first, halved in equal stages, 1 from `until` on.

    Args:
        progress: of the run, in [0, 1].
        pieces: a power of two.
        until: share of the run after which windows are whole.
    """
    if progress >= until:
        return 1
    stages = max(1, pieces.bit_length() - 1)
    return max(1, pieces >> int(progress / until * stages))


def cut_windows(tokens_BT1: Tensor, pieces: int) -> Tensor:
    """[B, T + 1] -> [B * pieces, T / pieces + 1]: the same T predictions a row, each with less before it."""
    length = (tokens_BT1.shape[1] - 1) // pieces
    return tokens_BT1.unfold(1, length + 1, length).reshape(-1, length + 1)


def make_task(settings: dict[str, Any], run_dir: Path) -> PretrainTask:
    """For workers: `settings` are those of `Ready`."""
    ready = msgspec.convert(settings, Ready)
    config = ready.config
    return PretrainTask(config, TokenDataset(Path(ready.train_dir), config.seq_len))
