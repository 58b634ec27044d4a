"""A peer that ends: with a farewell, without, or with a message half through, of which gloo tells nobody."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.parallel import rings
from shoestring.parallel.backends import own_backend
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.peers import PeerWatch
from tests.apart import begin_apart, end_apart

ITEMS = 100_000_000  # 100 MB: a tenth of a second on loopback
DEADLINE_S = 30.0
SOON_S = 5.0
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def die_with_a_message_half_through() -> None:
    """As soon as a part of what is sent is still in the socket."""
    clock = SystemClock()
    until_s = clock.now() + DEADLINE_S
    while clock.now() < until_s:
        lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
        if any(int(line.split()[4].partition(":")[0], 16) > 100_000 for line in lines):
            os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("the peer was through before it could die")


def ring_of(rank: int, folder: Path) -> rings.Rings:
    store = dist.FileStore(str(folder / "store"), 2)
    return rings.Rings([[0, 1]], rank=rank, store=store, timeout_s=60.0, chunk_bytes=ITEMS, scopes=("world",))


@pytest.mark.faults
def test_rings_notice_a_peer_that_dies_within_a_message(tmp_path: Path) -> None:
    def other() -> None:
        gathered = torch.zeros(2 * ITEMS, dtype=torch.uint8)
        ring = ring_of(1, tmp_path)
        ring.all_gather(gathered, gathered[ITEMS:], method="flat")
        die_with_a_message_half_through()

    child = begin_apart(tmp_path, other)
    gathered = torch.zeros(2 * ITEMS, dtype=torch.uint8)
    ring = ring_of(0, tmp_path)
    pending = ring.all_gather(gathered, gathered[:ITEMS], method="flat")
    assert end_apart(tmp_path, child) == f"ended with status {int(signal.SIGKILL)}"
    clock = SystemClock()
    died_s = clock.now()
    with pytest.raises(PeerLostError, match="all_gather"):
        pending.wait()
    ring.close()
    assert clock.now() - died_s < SOON_S


def watched(rank: int, folder: Path, lost: Callable[[int, str], None]) -> tuple[dist.ProcessGroup, PeerWatch]:
    backend = own_backend(dist.FileStore(str(folder / "store"), 2), rank, 2, CPU, 60.0)
    return backend, PeerWatch(backend, [1 - rank], lost)


@pytest.mark.faults
@pytest.mark.parametrize("friendly", [True, False])
def test_a_farewell_tells_leaving_from_dying(tmp_path: Path, friendly: bool) -> None:
    def other() -> None:
        _, watch = watched(1, tmp_path, lambda peer, said: None)
        watch.close(friendly)

    child = begin_apart(tmp_path, other)
    told: list[int] = []
    _, watch = watched(0, tmp_path, lambda peer, said: told.append(peer))
    waiting = [thread for thread in threading.enumerate() if thread.name == "peer-1"]  # or it is through
    assert end_apart(tmp_path, child) == ""
    for thread in waiting:
        thread.join(DEADLINE_S)
    assert not any(thread.is_alive() for thread in waiting)
    assert told == ([] if friendly else [1])
    watch.close(friendly=True)


@pytest.mark.faults
def test_hanging_up_wakes_who_waits_on_the_other_side(tmp_path: Path) -> None:
    def other() -> None:
        backend, _ = watched(1, tmp_path, lambda peer, said: None)
        with pytest.raises(RuntimeError):
            backend.recv([torch.empty(1)], 0, 5).wait(timedelta(seconds=DEADLINE_S))

    child = begin_apart(tmp_path, other)
    told: list[int] = []
    _, watch = watched(0, tmp_path, lambda peer, said: told.append(peer))
    clock = SystemClock()
    began_s = clock.now()
    watch.close(friendly=False)
    watch.close(friendly=True)
    assert end_apart(tmp_path, child) == ""
    assert clock.now() - began_s < SOON_S
    assert not told, "it hung up by itself: that is nobody's loss"
