"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from shoestring.base.config import Config
from shoestring.train.schedules import ScheduleConfig


class ShardingConfig(Config):
    """The part of a plan that a worker needs.

    Attributes:
        strategy: three letters, see `cluster.strategies`.
        dtype: of the working parameters: `bf16`, `fp32`, or `as_is`: what the model holds.
        groups: worker -> name of its fast group; empty: one group.
    """

    strategy: str = "NNN"
    dtype: str = "as_is"
    groups: dict[str, str] = {}


class TrainConfig(Config):
    """Settings of the loop.

    Attributes:
        seed: of initialisation, order of the data, and every random choice of a step.
        micro_batch: samples that one forward and backward pass takes; more are accumulated.
        clip_norm: bound on the global gradient norm; 0: none.
        schedule: of the learning rate.
        autocast: `bf16` runs the task's loss under autocast; `off` leaves precision to the model.
        compile: run the task's loss through torch.compile; on a CPU that needs a C++ compiler.
        exchange_dtype: what gradients are summed in over the network: `fp32`, `bf16`, or `as_is`.
        exchange_timeout_s: bound on one collective.
        sharding: what of the state is sharded, and how; the plan fills it in.
        threads: compute threads of a worker; 0: the machine's cores divided by the workers.
    """

    seed: int = 0
    micro_batch: int = 16
    clip_norm: float = 1.0
    schedule: ScheduleConfig = ScheduleConfig()
    autocast: str = "off"
    compile: bool = False
    exchange_dtype: Literal["as_is", "fp32", "bf16"] = "as_is"
    exchange_timeout_s: float = 600.0
    sharding: ShardingConfig = ShardingConfig()
    threads: int = 0
