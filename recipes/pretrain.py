"""Pre-training recipes. What was tried on the way to these numbers stands in docs/log.md."""

from shoestring.data.tokenizer import TokenizerConfig
from shoestring.fleet.config import CheckpointConfig, DrillConfig, FleetConfig, MemberConfig, PaceConfig
from shoestring.jobs.pretrain.config import EvaluateConfig, PretrainConfig
from shoestring.models.moe_lm.config import MoeConfig
from shoestring.train.loop import TrainConfig
from shoestring.train.muon import OptimizerConfig
from shoestring.train.schedules import ScheduleConfig

SMALL = MoeConfig(
    vocab_size=4096, layers=4, hidden=192, heads=3, kv_heads=1, head_dim=64, experts=16, top_k=2,
    shared_experts=1, expert_width=128, init="fan_in", embed_init_std=1.0, residual_init=0.0, final_norm_init=4.0,
    balance_coef=0.01,
)  # fmt: skip


def pretrain() -> PretrainConfig:
    """A small model on your text: half an hour, as many workers as the plan finds best."""
    return PretrainConfig(
        epochs=1000,
        model=SMALL,
        tokenizer=TokenizerConfig(vocab_size=4096),
        train=TrainConfig(
            micro_batch=8, clip_norm=1.0, schedule=ScheduleConfig(kind="wsd", warmup=0.02, decay=0.5)
        ),
        optimizer=OptimizerConfig(),
        fleet=FleetConfig(
            members=MemberConfig(workers=0),
            pace=PaceConfig(budget_s=1800.0, batch=32),
            checkpoint=CheckpointConfig(every_s=60.0),
        ),
        evaluate=EvaluateConfig(),
    )


def pretrain_long() -> PretrainConfig:
    """The model of the README's second figure: 30 minutes on two cores."""
    base = pretrain()
    members = base.fleet.members.model_copy(update={"workers": 2})
    return base.model_copy(update={"fleet": base.fleet.model_copy(update={"members": members})})


def demo() -> PretrainConfig:
    """Four minutes with two workers, one of which is killed half-way."""
    base = pretrain_long()
    fleet = base.fleet.model_copy(
        update={
            "pace": base.fleet.pace.model_copy(update={"budget_s": 230.0, "batch": 16}),
            "checkpoint": CheckpointConfig(every_s=45.0),
            "drill": DrillConfig(kill="w1", at_progress=0.5),
        }
    )
    return base.model_copy(update={"fleet": fleet})
