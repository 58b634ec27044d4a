"""A group of workers that exchange tensors for the length of one round (source: ours).

torch.distributed does the work: NCCL where the device is CUDA, gloo elsewhere. The rendezvous
goes through the coordinator's key-value table, under the number of the round, so that no extra
port is opened and no stale address is ever read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from shoestring.base.errors import first_line

BUCKET_BYTES = 64 * 2**20
# A peer that died after it had published its address is waited for that long, not for a collective's time.
FORM_TIMEOUT_S = 10.0


class PeerLostError(Exception):
    """A collective failed: some member of the round is gone, or cut off."""


class Rendezvous(Protocol):
    """Set, waiting get, and atomic add, shared by the members of a round."""

    def set(self, key: str, value: bytes) -> None:
        """Publish."""
        ...

    def get(self, key: str) -> bytes:
        """Read, waiting until it is there."""
        ...

    def add(self, key: str, amount: int) -> int:
        """Add and return the sum."""
        ...


class RendezvousStore(dist.Store):
    """A torch.distributed store on top of a Rendezvous."""

    def __init__(self, table: Rendezvous, timeout_s: float) -> None:
        super().__init__()
        self._table = table
        self._timeout = timedelta(seconds=timeout_s)

    @property
    def timeout(self) -> timedelta:
        """How long torch may wait on this store."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Asked for by torch."""
        self._timeout = timeout

    def set(self, key: str, value: Any) -> None:
        """Publish a value (bytes, or text)."""
        self._table.set(_same_everywhere(key), value.encode() if isinstance(value, str) else bytes(value))

    def get(self, key: str) -> bytes:
        """Read a value, waiting for it."""
        return self._table.get(_same_everywhere(key))

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Wait until all keys are there."""
        for key in keys:
            self._table.get(_same_everywhere(key))

    def add(self, key: str, amount: int) -> int:
        """Add to a counter."""
        return self._table.add(_same_everywhere(key), amount)


def _same_everywhere(key: str) -> str:
    """torch numbers the groups of a process, and one that could not be formed leaves the number ahead
    of the other members', who then wait for keys that never come. The round is the name here."""
    return re.sub(r"^(default_pg/)?\d+/", "group/", key)


class Group:
    """Collectives of one round. With one member every call is free and touches no network.

    Args:
        rank, size: this member's number, and how many there are.
        store: the round's rendezvous, for further connections of the same members; None with one member.
    """

    def __init__(self, rank: int, size: int, store: RendezvousStore | None = None) -> None:
        self.rank = rank
        self.size = size
        # torch keeps only the C++ half of a store; without this one its methods would be gone.
        self.store = store

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the members, in place; bit-equal on every member.

        Raises:
            PeerLostError: a member is gone.
        """
        if self.size > 1:
            with peer_errors():
                dist.all_reduce(tensor)
        return tensor

    def copy_from_(self, source: int, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the tensors of member `source` into everyone's, in place, in buckets.

        Raises:
            PeerLostError: a member is gone; the tensors may be half copied.
        """
        if self.size == 1:
            return
        with peer_errors(), torch.no_grad():
            for bucket in _buckets(tensors):
                flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
                dist.broadcast(flat, src=source)
                offset = 0
                for tensor in bucket:
                    tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
                    offset += tensor.numel()


@contextmanager
def form(
    table: Rendezvous,
    rank: int,
    size: int,
    device: torch.device,
    timeout_s: float,
    loopback: bool,
    shared_gpus: bool = False,
) -> Iterator[Group]:
    """Form the group of a round; it ends with the `with` block.

    Args:
        table: the round's rendezvous.
        device: decides the backend: NCCL for CUDA, gloo for the CPU.
        shared_gpus: members have a GPU in common, which NCCL refuses: gloo carries their tensors.
        timeout_s: bound on any one collective; hung members are found earlier, by heartbeat.
        loopback: all members are on this machine: listen on the loopback interface only.

    Raises:
        PeerLostError: the group could not be formed.
    """
    if size == 1:
        yield Group(0, 1)
        return
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    backend = "nccl" if device.type == "cuda" and not shared_gpus else "gloo"
    store = RendezvousStore(table, min(FORM_TIMEOUT_S, timeout_s))
    try:
        with peer_errors():
            forming_s = min(FORM_TIMEOUT_S, timeout_s)
            dist.init_process_group(
                backend,
                store=store,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=forming_s),
                device_id=device if backend == "nccl" else None,
            )
            distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s))
        yield Group(rank, size, store)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def peer_errors(what: str = "") -> Iterator[None]:
    """What a backend raises about its peers, as PeerLostError; out-of-memory stays what it is.

    Args:
        what: went wrong, in words, to stand before the backend's own.
    """
    # gloo reports every lost peer as a plain RuntimeError; out-of-memory is one too, and is not a peer's.
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = first_line(error)
        raise PeerLostError(f"{what}: {said}" if what else said) from error


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Tensors of one dtype together, up to BUCKET_BYTES a bucket."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        bucket: list[torch.Tensor] = []
        size_bytes = 0
        for tensor in group:
            bucket.append(tensor)
            size_bytes += tensor.numel() * tensor.element_size()
            if size_bytes >= BUCKET_BYTES:
                yield bucket
                bucket, size_bytes = [], 0
        if bucket:
            yield bucket
