"""Settings of a pre-training run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
from pydantic import Field, model_validator

from shoestring.base.config import Config, parse_config
from shoestring.base.errors import ConfigError
from shoestring.data.prepare import PackingConfig
from shoestring.data.sources import SourceConfig
from shoestring.data.tokenizer import TokenizerConfig
from shoestring.infer.prepared import PREPARED
from shoestring.models.moe_lm.config import MoeConfig
from shoestring.train.muon import OptimizerConfig
from shoestring.train.runs import JobConfig


class EvaluateConfig(Config):
    """How a finished model is scored, and beside what.

    Attributes:
        window: tokens that the model sees at once; longer files are scored window by window.
        stride: tokens by which the window moves on; each token sees at least window - stride before it.
        batch_tokens: tokens of one forward pass.
        max_bytes: held-out text that is scored; the files beyond it are left out, and that is said.
        baselines: score xz and an n-gram model on the same files.
        sample_prompt, sample_tokens: the text that the finished model goes on with.
    """

    window: int = Field(default=1024, ge=2)
    stride: int = Field(default=512, ge=1)
    batch_tokens: int = Field(default=8192, ge=2)
    max_bytes: int = Field(default=4 * 2**20, ge=1)
    baselines: bool = True
    sample_prompt: str = "import sys\n\n\ndef main("
    sample_tokens: int = Field(default=120, ge=1)


class PretrainConfig(JobConfig):
    """All settings of a run.

    Attributes:
        data: which files; `tokenizer`: the vocabulary that is trained on them.
        seq_len: tokens of a training window.
        short_pieces: at first, windows are cut into this many shorter ones, then into half as many, and so
            on; a power of two that divides `seq_len`. Short contexts are learnt first, and faster.
        short_until: share of the run after which windows are whole.
        packing: where packed tokens are kept for the next run.
        model: shape of the model; its vocabulary follows the tokenizer.
        compute_dtype: `auto` measures which is quicker on this device.
        optimizer: rates by kind of parameter.
        evaluate: scoring at the end.
    """

    job: Literal["pretrain"] = "pretrain"
    data: SourceConfig = SourceConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    seq_len: int = Field(default=256, ge=2)
    short_pieces: int = Field(default=1, ge=1)
    short_until: float = Field(default=0.0, ge=0.0, le=1.0)
    packing: PackingConfig = PackingConfig()
    model: MoeConfig
    compute_dtype: Literal["auto", "bf16", "fp32"] = "auto"
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _windows_can_be_cut(self) -> PretrainConfig:
        if self.short_pieces & (self.short_pieces - 1) or self.seq_len % self.short_pieces:
            raise ConfigError(
                f"windows of {self.seq_len} tokens cannot be cut into {self.short_pieces} pieces by halving",
                "make short_pieces a power of two that divides seq_len",
            )
        return self


class Ready(msgspec.Struct, frozen=True):
    """What preparing a run has fixed: the resolved settings, and where its data lies."""

    settings: dict[str, Any]
    train_dir: str
    heldout_dir: str
    tokenizer: str

    @property
    def config(self) -> PretrainConfig:
        """The settings, checked again."""
        return parse_config(PretrainConfig, self.settings)


def ready_of(run_dir: Path) -> Ready:
    """What a run was prepared with.

    Raises:
        ConfigError: the run was never prepared.
    """
    try:
        return msgspec.json.decode((run_dir / PREPARED).read_bytes(), type=Ready)
    except OSError as error:
        raise ConfigError(
            f"{run_dir.name} has no model yet", f"go on with it: shoestring resume {run_dir.name}"
        ) from error
