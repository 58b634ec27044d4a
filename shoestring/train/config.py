"""Settings of the training loop."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from shoestring.base.config import Config
from shoestring.cluster.planner import AUTO
from shoestring.cluster.strategies import parse_strategy
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


class ParallelConfig(Config):
    """What a user may say about sharding; the plan does the rest.

    Attributes:
        strategy: `auto`, or three letters for parameters, gradients and optimizer states: N whole on each
            worker, I sharded inside the fast group, G over all workers.
        cluster: path of a cluster file, as `shoestring probe` writes it; empty: this machine, links assumed.
        group_size: workers of a fast group; 0: the cluster's islands.
        memory_limit_bytes: of a worker; 0: its share of the device's memory.
        dtype: of the working parameters. `as_is` leaves the model's own; `auto` does so under NNN and takes
            the compute dtype elsewhere (masters stay fp32).
    """

    strategy: str = "auto"
    cluster: str = ""
    group_size: int = Field(default=0, ge=0)
    memory_limit_bytes: int = Field(default=0, ge=0)
    dtype: Literal["auto", "as_is", "bf16", "fp32"] = "auto"

    @field_validator("strategy")
    @classmethod
    def _known(cls, strategy: str) -> str:
        return strategy if strategy == AUTO else parse_strategy(strategy).name


class EditConfig(Config):
    """Local steps and what is made of them (EDiT, arXiv 2412.07210). See `train.outer`.

    Attributes:
        local_batch: samples of a worker's own update; 0: of one pass.
        outer_lr, outer_momentum: of the outer optimizer, SGD with Nesterov momentum.
        temperature: how fast a worker counts less the further it moved, in medians of the norms; 0: not.
        z_limit: a norm that many standard deviations above a worker's own mean is left out.
        ewma: weight of the newest norm in that mean.
        warmup: synchronisations before anything is left out.
        clip_norm: of a layer's pseudo-gradient; 0: none.
    """

    local_batch: int = Field(default=0, ge=0)
    outer_lr: float = Field(default=0.7, gt=0.0)
    outer_momentum: float = Field(default=0.8, ge=0.0, lt=1.0)
    temperature: float = Field(default=1.0, ge=0.0)
    z_limit: float = Field(default=3.0, gt=0.0)
    ewma: float = Field(default=0.02, gt=0.0, le=1.0)
    warmup: int = Field(default=10, ge=0)
    clip_norm: float = Field(default=10.0, ge=0.0)


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
        sync: `each_step`: workers exchange gradients in each step; `edit`: they take steps of their own and
            synchronise by the clock (`fleet.pace.window_s`) or after `fleet.pace.batch` samples; `servers`:
            they read parameters from servers and bring gradients to them (`fleet.servers`).
        edit: of the latter.
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
    sync: Literal["each_step", "edit", "servers"] = "each_step"
    edit: EditConfig = EditConfig()
    threads: int = 0
