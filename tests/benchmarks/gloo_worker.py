"""A rank of the torch tests of the lab: sums over all ranks, then BYTES among the ranks of its host alone."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist

LOCAL_BYTES = 8 * 2**20

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    total = torch.full((1000,), float(rank + 1))
    dist.all_reduce(total)
    print(f"sum {total.min().item():g} {total.max().item():g}")
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if local > 1:
        groups = [dist.new_group(list(range(first, first + local))) for first in range(0, world, local)]
        dist.all_reduce(torch.ones(LOCAL_BYTES // 4), group=groups[int(os.environ["GROUP_RANK"])])
    dist.destroy_process_group()
    sys.stdout.flush()
