"""A backend of our own for each scope, and how to end it while somebody waits on it (source: ours)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shoestring.parallel.backends import own_backend
from shoestring.parallel.group import FORM_TIMEOUT_S, peer_errors

# Tags count up from 0 and begin again here; the next one is kept for what must never arrive.
TAGS = 2**30
NEVER = TAGS + 1
AT_ONCE = timedelta(milliseconds=1)


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
        self._looks: list[tuple[Any, torch.Tensor]] = []  # awaited for ever, so kept
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

    def look(self) -> None:
        """Ask whether all peers are still there.

        gloo wakes nobody who waits for a message of which a part has come when its sender dies; but to await
        one more message from a dead peer fails at once.

        Raises:
            PeerLostError: one is gone.
        """
        backend = self.backend
        if backend is None or self.cuda:
            return
        for peer in range(self.size):
            if peer != self.rank:
                with peer_errors(f"rank {self.members[peer]} is gone"):
                    never = torch.empty(1, dtype=torch.uint8)
                    self._looks.append((backend.recv([never], peer, NEVER), never))

    def abort(self) -> None:
        """Close every pair now, also under a thread that waits; waiting peers get an error at once."""
        if self.backend is None:
            return
        if self.cuda:
            self.backend.abort()
            return
        # gloo has no abort. But a receive that times out closes all pairs of its group, so let one time out;
        # at a peer that is gone already it fails without doing so, hence at each.
        for peer in range(self.size):
            if peer != self.rank:
                try:
                    self.backend.recv([torch.empty(1, dtype=torch.uint8)], peer, NEVER).wait(AT_ONCE)
                except RuntimeError as error:
                    if "imed out" in str(error):
                        return

    def close(self) -> None:
        """Let go of the connection; nobody may wait on it any more."""
        if self.cuda:
            self.backend.shutdown()
        self.backend = None


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
