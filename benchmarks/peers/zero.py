"""DeepSpeed: ZeRO-3, and ZeRO++'s hpZ (a second copy of the parameters, sharded inside a host).

Runs in an environment of its own (scripts/make-peers-venv). DeepSpeed's thresholds are numbers of parameters,
made for models of billions: left alone on a model of millions, nothing is ever freed between the forward and
the backward pass. `scaled` sets them so that they mean here what they mean there.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.common import Seen, Setup, StateBytes, adamw, build_model, bytes_of, loss_of
from benchmarks.peers.hooks import PeerRings, plain_backend, ring_backend


@dataclass(frozen=True)
class ZeroChoice:
    """How ZeRO-3 is set. None leaves DeepSpeed's own default.

    Attributes:
        hpz: keep a second copy of the parameters, sharded inside a host, for the backward pass.
        rings: our ring collectives instead of gloo's.
        scaled: free parameters after each use, as on a model that is large for its device.
        leaf: gather a decoder layer as a whole (set_z3_leaf_modules), not each of its matrices.
        overlap_comm and the rest: as in DeepSpeed's `zero_optimization`, sizes in elements.
        method: of the rings over all ranks.
    """

    hpz: bool = False
    rings: bool = False
    scaled: bool = True
    leaf: bool = True
    overlap_comm: bool | None = None
    contiguous_gradients: bool | None = None
    reduce_bucket_size: int | None = None
    prefetch_bucket_size: int | None = None
    persistence_threshold: int | None = None
    max_live_parameters: int | None = None
    max_reuse_distance: int | None = None
    method: str = "flat"


class ZeroArm:
    """DeepSpeed's engine over the processes of the default group.

    Args:
        choice: see ZeroChoice.
        name: of this arm\'s rings.
    """

    def __init__(self, setup: Setup, choice: ZeroChoice, name: str = "peers") -> None:
        deepspeed = _load()
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        self._rings = PeerRings(setup.ranks_per_host, choice.method, name) if choice.rings else None
        self._backend: Any = deepspeed.comm.comm.cdb
        if self._rings is not None:
            ring_backend(self._backend, self._rings)
        model = build_model(setup)
        if choice.leaf:
            deepspeed.utils.set_z3_leaf_modules(model, [type(model.model.layers[0])])
        self._engine, _, _, _ = deepspeed.initialize(
            model=model, optimizer=adamw(setup, model.parameters()), config=_settings(setup, choice)
        )
        self._zero: Any = self._engine.optimizer

    def step(self, batches: list[Tensor], look: Callable[[Seen], None] | None) -> Tensor:
        """See Arm."""
        losses = []
        for number, batch in enumerate(batches):
            loss = loss_of(self._engine, batch)
            self._engine.backward(loss)
            losses.append(loss.detach().float())
            held = self._held() if look is not None and number == len(batches) - 1 else None
            self._engine.step()
        if look is not None and held is not None:
            # DeepSpeed computes the norm in its step, and frees the gradients in it.
            look(Seen(held, float(self._engine.get_global_grad_norm())))
        return torch.stack(losses)

    def settle(self) -> None:
        """See Arm: nothing outlives a step."""

    def close(self) -> None:
        """See Arm."""
        self._engine.destroy()
        if self._rings is not None:
            plain_backend(self._backend)
            self._rings.close()

    def _held(self) -> StateBytes:
        zero = self._zero
        masters = list(zero.fp32_partitioned_groups_flat)
        working: list[Tensor] = []
        for parameter in self._engine.module.parameters():
            working.append(parameter.ds_tensor)
            if parameter.ds_secondary_tensor is not None:
                working.append(parameter.ds_secondary_tensor)
            if parameter.data.numel():
                working.append(parameter.data)
        gradients = [one for group in zero.averaged_gradients.values() if group for one in group]
        if not gradients:
            gradients = list(zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values())
        # In fp32 the masters are the working parameters.
        own = {tensor.untyped_storage().data_ptr() for tensor in masters}
        apart = [tensor for tensor in working if tensor.untyped_storage().data_ptr() not in own]
        return StateBytes(bytes_of(apart), bytes_of(gradients), 3 * bytes_of(masters))


def _load() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed  # type: ignore[import-not-found, unused-ignore]

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory kernels need a compiler, serve inference only, and know no network namespaces.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # The group of an earlier hpZ in this process stays behind, and would turn plain ZeRO-3 into hpZ.
    deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    return deepspeed


def _settings(setup: Setup, choice: ZeroChoice) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": 3}
    if choice.scaled:
        zero |= {
            "stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 2_000_000, "stage3_param_persistence_threshold": 2_000,
        }  # fmt: skip
    named = {
        "overlap_comm": choice.overlap_comm,
        "contiguous_gradients": choice.contiguous_gradients,
        "reduce_bucket_size": choice.reduce_bucket_size,
        "stage3_prefetch_bucket_size": choice.prefetch_bucket_size,
        "stage3_param_persistence_threshold": choice.persistence_threshold,
        "stage3_max_live_parameters": choice.max_live_parameters,
        "stage3_max_reuse_distance": choice.max_reuse_distance,
    }
    zero |= {name: value for name, value in named.items() if value is not None}
    if choice.hpz:
        zero["zero_hpz_partition_size"] = setup.ranks_per_host
    return {
        "train_micro_batch_size_per_gpu": setup.micro_batch,
        "gradient_accumulation_steps": setup.accumulation,
        "zero_optimization": zero,
        "bf16": {"enabled": setup.dtype == "bf16"},
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "wall_clock_breakdown": False,
        "steps_per_print": 1_000_000_000,
    }
