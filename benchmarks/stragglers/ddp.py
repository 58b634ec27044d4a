"""PyTorch's own data-parallel training under the same quotas, as its users run it: DistributedDataParallel
and a DistributedSampler, alone, under torchelastic's agent, or under torchft.

As a program it is one rank: it imports, writes its process id into a folder when it is ready, and begins once
its parent has moved it into its place's cgroup and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler

from benchmarks.common import ROOT
from benchmarks.lab import Lab
from benchmarks.stragglers import task
from benchmarks.stragglers.places import WORKERS, Script
from shoestring.base.clock import SystemClock

KINDS = ("ddp", "torchelastic", "torchft")
TICK_S = 0.05
READY_S = 120.0
PATIENCE = timedelta(seconds=300)
GO, RESULT = "go", "result.json"


class Numbers(Dataset[Any]):
    """Whole micro-batches by their samples' numbers."""

    def __len__(self) -> int:
        return task.SAMPLES

    def __getitems__(self, ids: list[int]) -> Any:
        """The samples of a micro-batch."""
        return task.samples(np.array(ids, dtype=np.int64))


class Trained:
    """A model wrapped for one of the kinds, its optimizer, and how to end."""

    def __init__(self, model: DistributedDataParallel, optimizer: Any, end: Callable[[], None]) -> None:
        self.model, self.optimizer, self.end = model, optimizer, end


def wrapped(kind: str, folder: Path, rank: int) -> Trained:
    """The task's model as users of this kind have it."""
    if kind == "torchft":
        return _under_torchft(folder, rank)
    method = f"file://{folder / 'store'}" if kind == "ddp" else "env://"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=WORKERS)
    model = DistributedDataParallel(task.build())
    return Trained(model, torch.optim.AdamW(model.parameters(), lr=task.RATE), dist.destroy_process_group)


def _under_torchft(folder: Path, rank: int) -> Trained:
    """Each worker is a replica group of its own, which is how torchft is run for data parallelism."""
    import torchft

    plain = task.build()
    inner = torch.optim.AdamW(plain.parameters(), lr=task.RATE)

    def load(state: Any) -> None:
        plain.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = torchft.Manager(
        pg=torchft.ProcessGroupGloo(timeout=PATIENCE), min_replica_size=WORKERS, load_state_dict=load,
        state_dict=lambda: {"model": plain.state_dict(), "optimizer": inner.state_dict()},
        replica_id=f"worker_{rank}", store_addr="127.0.0.1", store_port=store.port, rank=0, world_size=1,
        lighthouse_addr=(folder / "lighthouse").read_text(), hostname="127.0.0.1", timeout=PATIENCE,
        quorum_timeout=PATIENCE, init_sync=False,  # the seed makes them equal
    )  # fmt: skip
    model = torchft.DistributedDataParallel(manager, plain)

    def end(held: dist.TCPStore = store) -> None:  # who lets go of the store closes it
        manager.shutdown(wait=False)

    return Trained(model, torchft.Optimizer(manager, inner), end)


def rank_main(kind: str, name: str, rank: int, steps: int, batch: int, micro_batch: int, seed: int) -> None:
    """One rank: says that it is ready, waits to be let go, trains; rank 0 writes what came of it."""
    clock, folder = SystemClock(), Path(name)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    made = wrapped(kind, folder, rank)
    data = Numbers()
    sampler: Any = DistributedSampler(data, WORKERS, rank, shuffle=True, seed=seed)
    loader = iter(
        DataLoader(data, batch_sampler=BatchSampler(sampler, micro_batch, False), collate_fn=_whole)
    )
    _publish(folder / f"ready.{rank}", str(os.getpid()))
    while not (folder / GO).exists():
        clock.sleep(TICK_S / 10)
    began_s = clock.now()
    own = batch // WORKERS
    ends_s, losses = [], []
    made.optimizer.zero_grad()
    for _ in range(steps):
        passes = own // micro_batch
        total = 0.0
        for turn in range(passes):
            inputs, labels = next(loader)
            with made.model.no_sync() if turn + 1 < passes else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(made.model(inputs), labels, reduction="sum") / own
                loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(made.model.parameters(), 1.0)
        made.optimizer.step()
        made.optimizer.zero_grad()
        ends_s.append(clock.now() - began_s)
        losses.append(total)
    if rank == 0:
        found = {
            "took_s": ends_s[-1], "samples": steps * own * WORKERS, "ends_s": ends_s, "losses": losses,
            "held_out": task.held_out_loss(made.model.module),
        }  # fmt: skip
        _publish(folder / RESULT, json.dumps(found))
    made.end()


def run(
    lab: Lab, script: Script, kind: str, steps: int, batch: int, micro_batch: int, seed: int
) -> dict[str, Any]:
    """Train for so many steps, on all places."""
    clock = SystemClock()
    with tempfile.TemporaryDirectory() as name, _lighthouse(kind, Path(name)):
        folder = Path(name)
        words = [kind, name, *map(str, (steps, batch, micro_batch, seed))]
        processes = _started(words)
        try:
            for rank in range(WORKERS):
                lab.adopt(rank, int(_awaited(clock, folder / f"ready.{rank}", processes)))
            _publish(folder / GO, "")
            began_s = clock.now()
            while any(process.poll() is None for process in processes):
                for place, cores in script.due(clock.now() - began_s):
                    lab.set_cpu(place, cores)
                clock.sleep(TICK_S)
            codes = [process.returncode for process in processes]
            if any(codes):
                raise SystemExit(f"{kind}: ranks ended with {codes}")
            found: dict[str, Any] = json.loads((folder / RESULT).read_text())
            return found
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()  # torchelastic's agent ends its ranks
                process.wait()


def _started(words: list[str]) -> list[subprocess.Popen[bytes]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    kind, name, *rest = words
    if kind == "torchelastic":
        agent = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS),
            "--max-restarts", "3", "-m", "benchmarks.stragglers.ddp", kind, name, "-1", *rest,
        ]  # fmt: skip
        return [subprocess.Popen(agent, cwd=ROOT, env=environment)]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.stragglers.ddp", kind, name, str(rank), *rest],
            cwd=ROOT,
            env=environment,
        )
        for rank in range(WORKERS)
    ]


@contextlib.contextmanager
def _lighthouse(kind: str, folder: Path) -> Iterator[None]:
    if kind != "torchft":
        yield
        return
    from torchft.coordination import LighthouseServer

    server = LighthouseServer(bind="127.0.0.1:0", min_replicas=WORKERS, join_timeout_ms=10_000)
    # Its address has this machine's name, which need not resolve.
    port = server.address().rpartition(":")[2]
    _publish(folder / "lighthouse", f"http://127.0.0.1:{port}")
    try:
        yield
    finally:
        server.shutdown()


def _awaited(clock: SystemClock, path: Path, processes: list[subprocess.Popen[bytes]]) -> str:
    until_s = clock.now() + READY_S
    while not path.exists():
        if any(process.poll() is not None for process in processes) or clock.now() > until_s:
            raise SystemExit(f"{path.name} did not come: {[process.returncode for process in processes]}")
        clock.sleep(TICK_S)
    return path.read_text()


def _publish(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def _whole(batch: Any) -> Any:
    return batch


if __name__ == "__main__":
    own_rank = int(sys.argv[3])
    rank_main(
        sys.argv[1], sys.argv[2], own_rank if own_rank >= 0 else int(os.environ["RANK"]),
        *map(int, sys.argv[4:]),
    )  # fmt: skip
