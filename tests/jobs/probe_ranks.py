"""One rank of a survey among test hosts, found through the variables that launchers set; rank 0 prints it."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import msgspec
import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.jobs.probe import Wire, facts_here, survey


def main(seconds: float) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    patience = timedelta(seconds=30)
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, rank == 0, timeout=patience
    )
    wire = Wire(store, rank, size, torch.device("cpu"), 30.0)
    host = f"host{os.environ['GROUP_RANK']}"
    found = survey(wire, facts_here(torch.device("cpu"), 1, host, host), seconds, SystemClock())
    wire.close()
    if rank == 0:
        print(msgspec.json.encode(found).decode(), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
