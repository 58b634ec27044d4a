"""Our rings behind the peers' own collectives, so that gloo's slow ones are no point for us.

Only the transport changes: the peers decide what is sent, when and to whom. Over all ranks the ring is a flat
one, group by group, as a backend made for it would lay it; our hierarchical rings are a product of ours and
stay out, unless a method is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from shoestring.cluster.strategies import equal_groups
from shoestring.parallel import rings


class PeerRings:
    """Rings that a peer's process groups are mapped onto.

    Args:
        ranks_per_host: m; ranks are numbered host by host.
        method: of collectives over all ranks.
        name: another one for each, as the rings of one store are told apart by it.
    """

    def __init__(self, ranks_per_host: int, method: Any = "flat", name: str = "peers") -> None:
        self._method = method
        self._layout = equal_groups(dist.get_world_size(), ranks_per_host)
        self._rings = rings.Rings(self._layout, scopes=("world", "group"), name=name)

    def all_gather(self, output: Tensor, shard: Tensor, group: Any) -> rings.Pending:
        """Start an all-gather over a group of the peer's."""
        scope = self._scope(group)
        return self._rings.all_gather(output.view(-1), shard.view(-1), scope, self._way(scope))

    def reduce_scatter(self, shard: Tensor, whole: Tensor, group: Any) -> rings.Pending:
        """Start a summing reduce-scatter over a group of the peer's; `whole` is scratch afterwards."""
        scope = self._scope(group)
        return self._rings.reduce_scatter(shard.view(-1), whole.view(-1), scope, self._way(scope))

    def close(self) -> None:
        """End threads and connections."""
        self._rings.close()

    def _way(self, scope: str) -> Any:
        return self._method if scope == "world" else "flat"

    def _scope(self, group: Any) -> Any:
        """Raises ValueError: the peer made a group that is neither everybody nor this host."""
        members = list(range(dist.get_world_size())) if group is None else dist.get_process_group_ranks(group)
        if len(members) == self._layout.size:
            return "world"
        here, _ = self._layout.locate(dist.get_rank())
        if tuple(members) == self._layout.groups[here]:
            return "group"
        raise ValueError(f"no ring connects the ranks {members}")


class RingGather(AllGather):
    """FSDP2's all-gather over our rings."""

    def __init__(self, peer_rings: PeerRings) -> None:
        self._rings = peer_rings

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As FSDP2 asks: an empty tensor."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        pending = self._rings.all_gather(output_tensor, input_tensor, group)
        if async_op:
            return RingWork(pending)
        pending.wait()
        return None


class RingReduceScatter(ReduceScatter):
    """FSDP2's reduce-scatter over our rings."""

    def __init__(self, peer_rings: PeerRings) -> None:
        self._rings = peer_rings

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """As FSDP2 asks: an empty tensor."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> dist.Work | None:
        self._rings.reduce_scatter(output_tensor, input_tensor, group).wait()
        if op == dist.ReduceOp.AVG:
            output_tensor.div_(group.size())
        elif op != dist.ReduceOp.SUM:
            raise ValueError(f"the rings sum; FSDP2 asked for {op}")
        return None


class RingWork(dist.Work):
    """A pending ring collective in the form that FSDP2 and DeepSpeed wait on."""

    def __init__(self, pending: rings.Pending) -> None:
        super().__init__()
        self._pending = pending

    def wait(self, timeout: Any = None) -> bool:
        """Until the result is there; the rings have a time-out of their own."""
        self._pending.wait()
        return True


def ring_backend(backend: Any, peer_rings: PeerRings) -> None:
    """Put the rings into DeepSpeed's communication object, for the two collectives that ZeRO-3 lives on."""

    def all_gather(
        output_tensor: Tensor, input_tensor: Tensor, group: Any = None, async_op: bool = False
    ) -> Any:
        work = RingWork(peer_rings.all_gather(output_tensor, input_tensor, group))
        return work if async_op else work.wait()

    def reduce_scatter(
        output_tensor: Tensor, input_tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False
    ) -> Any:
        # ZeRO divides beforehand and asks for a sum.
        work = RingWork(peer_rings.reduce_scatter(output_tensor, input_tensor, group))
        return work if async_op else work.wait()

    backend.all_gather_into_tensor = all_gather
    backend.reduce_scatter_tensor = reduce_scatter


def plain_backend(backend: Any) -> None:
    """Undo `ring_backend`: what was set on the object goes, its class' own methods serve again."""
    del backend.all_gather_into_tensor, backend.reduce_scatter_tensor
