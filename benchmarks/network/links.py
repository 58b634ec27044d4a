"""One rank of `shoestring probe`'s survey on test hosts; rank 0 prints the cluster that it found, as JSON."""

from __future__ import annotations

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.jobs.probe import Wire, facts_here, survey
from shoestring.jobs.probe.findings import to_cluster

PATIENCE_S = 30.0


def main(seconds: float) -> None:
    """Take part in the survey.

    Args:
        seconds: what it may take.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, rank == 0,
        timeout=timedelta(seconds=PATIENCE_S),
    )  # fmt: skip
    wire = Wire(store, rank, size, torch.device("cpu"), PATIENCE_S)
    host = f"host{os.environ['GROUP_RANK']}"
    found = survey(wire, facts_here(torch.device("cpu"), 1, host, host), seconds, SystemClock())
    wire.close()
    if rank == 0:
        print(to_cluster(found).model_dump_json(), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
