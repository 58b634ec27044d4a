"""A peer that dies while a long message of its is half through: before the time-out gloo tells nobody."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.parallel import rings
from shoestring.parallel.group import PeerLostError

ITEMS = 100_000_000  # 100 MB: a tenth of a second on loopback
DEADLINE_S = 30.0


def ring_of(rank: int, folder: Path) -> rings.Rings:
    store = dist.FileStore(str(folder / "store"), 2)
    return rings.Rings([[0, 1]], rank=rank, store=store, timeout_s=60.0, chunk_bytes=ITEMS, scopes=("world",))


def die_half_way(folder: Path) -> None:
    """Gather, and end as soon as a part of what is sent is still in the socket."""
    gathered = torch.zeros(2 * ITEMS, dtype=torch.uint8)
    ring = ring_of(1, folder)
    ring.all_gather(gathered, gathered[ITEMS:], method="flat")
    clock = SystemClock()
    until_s = clock.now() + DEADLINE_S
    while clock.now() < until_s:
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        if any(int(line.split()[4].partition(":")[0], 16) > 100_000 for line in lines):
            os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


@pytest.mark.faults
def test_a_peer_that_dies_within_a_message_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    child = os.fork()
    if child == 0:
        try:
            die_half_way(tmp_path)
        finally:
            os._exit(8)
    clock = SystemClock()
    gathered = torch.zeros(2 * ITEMS, dtype=torch.uint8)
    ring = ring_of(0, tmp_path)
    pending = ring.all_gather(gathered, gathered[:ITEMS], method="flat")
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the peer was through before it could die"
    died_s = clock.now()
    with pytest.raises(PeerLostError, match="all_gather"):
        pending.wait()
    ring.close()
    assert clock.now() - died_s < 5.0
