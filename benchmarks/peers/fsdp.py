"""FSDP2: full shard, and hybrid shard (HSDP) on a mesh of hosts x ranks of a host.

As its users do: `fully_shard` on each decoder layer and on the root, fp32 masters, bf16 parameters and
reductions under a MixedPrecisionPolicy. gloo has no quick reduce-scatter, so the arms exist a second time
with our rings under FSDP2's hooks: what is compared is then the sharding, not the backend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from benchmarks.peers.common import Seen, Setup, StateBytes, adamw, build_model, bytes_of, loss_of, over_ranks
from benchmarks.peers.hooks import PeerRings, RingGather, RingReduceScatter


@dataclass(frozen=True)
class FsdpChoice:
    """How FSDP2 is set.

    Attributes:
        hybrid: shard inside a host, replicate between hosts; else shard over all ranks.
        deferred: reduce between hosts once per optimizer step, not at every micro-step, as FSDP2 does untold.
        rings: our ring collectives under its hooks instead of gloo's collectives.
        reshard: free a layer's parameters after the forward pass; else they are gathered once an optimizer
            step and stay whole until its end.
        prefetch: gather the next layer's parameters while this one computes.
        method: of the rings over all ranks.
    """

    hybrid: bool = False
    deferred: bool = False
    rings: bool = False
    reshard: bool = True
    prefetch: bool = True
    method: str = "flat"


class FsdpArm:
    """FSDP2 over the processes of the default group.

    Args:
        choice: see FsdpChoice.
        name: of this arm's rings.
    """

    def __init__(self, setup: Setup, choice: FsdpChoice, name: str = "peers") -> None:
        self._setup, self._choice = setup, choice
        world, m = dist.get_world_size(), setup.ranks_per_host
        self._copies = world // m if choice.hybrid else 1
        shape, names = ((world // m, m), ("replicate", "shard")) if choice.hybrid else ((world,), ("shard",))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        policy = MixedPrecisionPolicy(param_dtype=setup.compute_dtype, reduce_dtype=setup.compute_dtype)
        model: Any = build_model(setup)
        layers = list(model.model.layers)
        for layer in layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=choice.reshard)
        fully_shard(model, mesh=mesh, mp_policy=policy)
        self._model: Any = model
        self._blocks: list[Any] = [model, *layers]
        if choice.prefetch:
            self._prefetch(layers)
        self._rings = PeerRings(m, choice.method, name) if choice.rings else None
        if self._rings is not None:
            for block in self._blocks:
                block.set_custom_all_gather(RingGather(self._rings))
                block.set_custom_reduce_scatter(RingReduceScatter(self._rings))
        self._optimizer = adamw(setup, model.parameters())

    def step(self, batches: list[Tensor], look: Callable[[Seen], None] | None) -> Tensor:
        """See Arm."""
        losses = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            if self._choice.deferred:
                self._model.set_requires_all_reduce(last)
                self._model.set_is_last_backward(last)
            if not self._choice.reshard:
                self._model.set_reshard_after_backward(last)
            loss = loss_of(self._model, batch)
            (loss / len(batches)).backward()
            losses.append(loss.detach())
        if look is not None:
            look(self._seen())
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses)

    def settle(self) -> None:
        """See Arm: nothing outlives a step."""

    def close(self) -> None:
        """See Arm."""
        if self._rings is not None:
            self._rings.close()

    def _prefetch(self, layers: list[Any]) -> None:
        for layer, following in itertools.pairwise(layers):
            layer.set_modules_to_forward_prefetch([following])
            following.set_modules_to_backward_prefetch([layer])
        # On CPUs there are no streams to overlap on: the gather itself has to be asynchronous.
        self._model._set_unshard_async_op(True)

    def _seen(self) -> Seen:
        masters = [_local(parameter) for parameter in self._model.parameters()]
        gradients = [_local(parameter.grad) for parameter in self._model.parameters()]
        square = float(sum(gradient.double().square().sum() for gradient in gradients))
        norm = over_ranks([square / self._copies], dist.ReduceOp.SUM)[0] ** 0.5
        kept = [parameter for block in self._blocks for parameter in _whole(block)]
        # Masters and two moments of their size; the moments appear with the first update.
        held = StateBytes(bytes_of(kept), bytes_of(gradients), 3 * bytes_of(masters))
        return Seen(held, norm)


def _local(tensor: Any) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.to_local()


def _whole(block: Any) -> list[Tensor]:
    """Parameters of a block that lie whole in memory now."""
    groups = [group for group in block._get_fsdp_state()._fsdp_param_groups if not group.is_sharded]
    return [parameter.unsharded_param for group in groups for parameter in group.fsdp_params]
