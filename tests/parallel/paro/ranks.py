"""Ranks as forked processes on loopback, each with rings of its own."""

from __future__ import annotations

import datetime
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo  # the first optimizer would, for a second in each rank; here once, before the fork
import torch.distributed as dist

from shoestring.cluster.strategies import Layout, equal_groups
from shoestring.parallel.paro.over_rings import RingExchange

SILENCE_S = 60.0
Body = Callable[[int], None]


def in_ranks(size: int, folder: Path, body: Body) -> None:
    """Run `body(rank)` in `size` ranks of one process group; what they raise fails the test here."""
    living: set[int] = set()
    codes: list[int] = []
    try:
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os._exit(_run(rank, size, folder, body))
            living.add(child)
        while living:
            for child in sorted(living):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    living.discard(child)
                    codes.append(os.waitstatus_to_exitcode(status))
                    for other in living if codes[-1] else ():  # they would wait for the one that failed
                        os.kill(other, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        for child in living:  # the test was given up
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    said = [path.read_text() for path in sorted(folder.glob("failed-*"), key=lambda p: p.stat().st_mtime)]
    assert codes == [0] * size, "\n".join(said) or f"exit codes {codes}"


def _run(rank: int, size: int, folder: Path, body: Body) -> int:
    try:
        join(rank, size, folder)
        body(rank)
        dist.destroy_process_group()
    except BaseException:
        (folder / f"failed-{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
        return 1
    return 0


def join(rank: int, size: int, folder: Path, name: str = "store") -> None:
    """Make the default process group over a file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / name), size)
    wait = datetime.timedelta(seconds=SILENCE_S)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=wait)


@contextmanager
def rings(layout: Layout, rank: int, name: str = "rings") -> Iterator[RingExchange]:
    """An exchange over the default process group; `name` is new each time."""
    exchange = RingExchange(layout, rank, timeout_s=SILENCE_S, name=name)
    try:
        yield exchange
    finally:
        exchange.close()


def mean_over_ranks(values: Sequence[float]) -> list[float]:
    """Element by element, in fp64."""
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return [float(value) for value in total / dist.get_world_size()]


TWO_BY_TWO = equal_groups(4, 2)
