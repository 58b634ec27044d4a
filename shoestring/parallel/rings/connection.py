"""A backend of our own for each scope, and how to end it while somebody waits on it (source: ours)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shoestring.parallel.backends import own_backend
from shoestring.parallel.group import FORM_TIMEOUT_S, PeerLostError, peer_errors
from shoestring.parallel.peers import FAREWELL, PeerWatch, hang_up

# Tags count up from 0 and begin again here; those from there on are for watching peers.
TAGS = FAREWELL


class Connection:
    """Ranks joined pair by pair by gloo (CPU) or NCCL (CUDA).

    Args:
        store: any torch.distributed store; keys below `name`, which no earlier connection on this store had.
        members: global rank of each rank of this connection.
        rank: of this process, in `members`.
        timeout_s: longest wait for one message.

    Raises:
        PeerLostError: some member did not come within FORM_TIMEOUT_S (or `timeout_s`, where that is less).
    """

    def __init__(
        self,
        store: dist.Store,
        name: str,
        members: Sequence[int],
        rank: int,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        self.members = tuple(members)
        self.rank = rank
        self.cuda = device.type == "cuda"
        self.timeout = timedelta(seconds=timeout_s)
        self._next_tag = 0
        self._watch: PeerWatch | None = None
        with peer_errors():
            self.backend: Any = own_backend(
                dist.PrefixStore(name, store), rank, len(members), device, timeout_s
            )

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.members)

    def tags(self, count: int) -> int:
        """The first of `count` tags; the same on every rank as long as all ask for the same counts."""
        if self._next_tag + count > TAGS:
            self._next_tag = 0
        first = self._next_tag
        self._next_tag += count
        return first

    def watch(self, lost: Callable[[PeerLostError], object]) -> None:
        """From now on `lost` is told, from a thread, when a peer is gone. All ranks do this, or none.

        NCCL has a watchdog of its own.
        """
        if self.cuda:
            return

        def gone(peer: int, said: str) -> None:
            lost(PeerLostError(f"rank {self.members[peer]} is gone: {said}"))

        self._watch = PeerWatch(self.backend, self._peers(), gone)

    def abort(self) -> None:
        """Close every pair now, also under a thread that waits; waiting peers get an error at once."""
        if self.backend is None:
            return
        if self.cuda:
            self.backend.abort()
        else:
            hang_up(self.backend, self._peers())

    def close(self, friendly: bool = True) -> None:
        """Let go of the connection; nobody may wait on it any more.

        Args:
            friendly: let peers go on with what they have with others.
        """
        if self.cuda:
            self.backend.shutdown()
        elif self._watch is not None:
            self._watch.close(friendly)
        self.backend = None

    def _peers(self) -> list[int]:
        return [peer for peer in range(self.size) if peer != self.rank]


def all_on_one_host(store: dist.Store, name: str, rank: int, size: int, timeout_s: float) -> bool:
    """Whether all ranks reach one another by the loopback of one kernel and one network namespace.

    Raises:
        PeerLostError: some rank did not say in time.
    """
    if size == 1:
        return True
    keys = dist.PrefixStore(name, store)
    own = Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/net")
    with peer_errors():
        keys.set(str(rank), own)
        keys.wait([str(one) for one in range(size)], timedelta(seconds=min(FORM_TIMEOUT_S, timeout_s)))
        return all(keys.get(str(one)) == own.encode() for one in range(size))
