"""PyTorch's DistributedDataParallel with a DistributedSampler under the same quotas, as its users run it.

As a program it is one rank: it imports, says that it is ready, and begins once its parent has moved it into
its place's cgroup and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
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

TICK_S = 0.05


class Numbers(Dataset[Any]):
    """Whole micro-batches by their samples' numbers."""

    def __len__(self) -> int:
        return task.SAMPLES

    def __getitems__(self, ids: list[int]) -> Any:
        """The samples of a micro-batch."""
        return task.samples(np.array(ids, dtype=np.int64))


def rank_main(store: str, rank: int, steps: int, batch: int, micro_batch: int, seed: int) -> None:
    """One rank: prints "ready", waits for a line, trains, and rank 0 prints what came of it."""
    clock = SystemClock()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORKERS)
    model = DistributedDataParallel(task.build())
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.RATE)
    data = Numbers()
    sampler: Any = DistributedSampler(data, WORKERS, rank, shuffle=True, seed=seed)
    loader = iter(
        DataLoader(data, batch_sampler=BatchSampler(sampler, micro_batch, False), collate_fn=_whole)
    )
    print("ready", flush=True)
    sys.stdin.readline()
    dist.barrier()
    began_s = clock.now()
    own = batch // WORKERS
    ends_s, losses = [], []
    for _ in range(steps):
        passes = own // micro_batch
        total = 0.0
        for turn in range(passes):
            inputs, labels = next(loader)
            with model.no_sync() if turn + 1 < passes else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(model(inputs), labels, reduction="sum") / own
                loss.backward()
            total += float(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ends_s.append(clock.now() - began_s)
        losses.append(total)
    dist.barrier()
    took_s = clock.now() - began_s
    if rank == 0:
        found = {
            "took_s": took_s, "samples": steps * own * WORKERS, "ends_s": ends_s, "losses": losses,
            "held_out": task.held_out_loss(model.module),
        }  # fmt: skip
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


def run(lab: Lab, script: Script, steps: int, batch: int, micro_batch: int, seed: int) -> dict[str, Any]:
    """Train for so many steps, on all places."""
    clock = SystemClock()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with tempfile.TemporaryDirectory() as name:
        words = [str(Path(name) / "store")]
        ranks = []
        try:
            for rank in range(WORKERS):
                told = [*words, *map(str, (rank, steps, batch, micro_batch, seed))]
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "benchmarks.stragglers.ddp", *told],
                        cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                    )
                )  # fmt: skip
            for rank, process in enumerate(ranks):
                assert process.stdout is not None
                while process.stdout.readline().strip() != "ready":
                    if process.poll() is not None:
                        raise SystemExit(f"rank {rank} ended with {process.returncode} before it was ready")
                lab.adopt(rank, process.pid)
            for process in ranks:
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
            began_s = clock.now()
            while any(process.poll() is None for process in ranks):
                for place, cores in script.due(clock.now() - began_s):
                    lab.set_cpu(place, cores)
                clock.sleep(TICK_S)
            codes = [process.returncode for process in ranks]
            if any(codes):
                raise SystemExit(f"ranks ended with {codes}")
            assert ranks[0].stdout is not None
            lines = [line for line in ranks[0].stdout if line.startswith("{")]
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        finally:
            for process in ranks:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _whole(batch: Any) -> Any:
    return batch


if __name__ == "__main__":
    rank_main(sys.argv[1], *map(int, sys.argv[2:]))
