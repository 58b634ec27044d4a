"""Pre-training recipes. What was tried on the way to these numbers stands in docs/log.md."""

from shoestring.data.tokenizer import TokenizerConfig
from shoestring.fleet.config import (
    CheckpointConfig,
    DrillConfig,
    FleetConfig,
    MemberConfig,
    PaceConfig,
)
from shoestring.jobs.pretrain.config import EvaluateConfig, PretrainConfig
from shoestring.models.moe_lm.config import MoeConfig
from shoestring.train.config import TrainConfig
from shoestring.train.schedules import ScheduleConfig


def pretrain() -> PretrainConfig:
    """Half an hour on your text; as many workers as the plan finds best."""
    return PretrainConfig(
        epochs=1000,
        seq_len=512,
        tokenizer=TokenizerConfig(vocab_size=4096),
        model=MoeConfig(
            vocab_size=4096, layers=5, hidden=256, heads=4, kv_heads=2, head_dim=64, experts=16, top_k=2,
            shared_experts=1, expert_width=128, init="fan_in", embed_init_std=1.0, residual_init=0.0,
            final_norm_init=4.0, balance_coef=0.01,
        ),
        train=TrainConfig(
            micro_batch=8,
            schedule=ScheduleConfig(kind="wsd", warmup=0.02, decay=0.8),
        ),
        fleet=FleetConfig(
            members=MemberConfig(workers=0),
            pace=PaceConfig(budget_s=1800.0, batch=16),
            checkpoint=CheckpointConfig(every_s=120.0),
        ),
        evaluate=EvaluateConfig(window=512, stride=128),
    )  # fmt: skip


def pretrain_long() -> PretrainConfig:
    """The README's second figure: `pretrain` with two workers on two cores."""
    return _with_workers(pretrain(), 2)


def demo() -> PretrainConfig:
    """Four minutes with two workers, one of which is killed half-way."""
    base = _with_workers(pretrain(), 2)
    small = base.model.model_copy(
        update={"layers": 4, "hidden": 192, "heads": 3, "kv_heads": 1, "experts": 8}
    )
    fleet = base.fleet.model_copy(
        update={
            "pace": PaceConfig(budget_s=230.0, batch=32, batch_start=16, batch_warmup=0.5),
            "checkpoint": CheckpointConfig(every_s=45.0),
            "drill": DrillConfig(kill="w1", at_progress=0.5),
        }
    )
    return base.model_copy(
        update={
            "model": small,
            "seq_len": 256,
            "short_pieces": 4,
            "short_until": 0.7,
            "fleet": fleet,
            "train": base.train.model_copy(update={"micro_batch": 16, "exchange_dtype": "bf16"}),
            "evaluate": EvaluateConfig(window=256, stride=128),
        }
    )


def _with_workers(config: PretrainConfig, workers: int) -> PretrainConfig:
    members = config.fleet.members.model_copy(update={"workers": workers})
    return config.model_copy(update={"fleet": config.fleet.model_copy(update={"members": members})})
