"""A worker in a test host: it enters the host's network before it does anything else."""

from __future__ import annotations

import os

import msgspec

from benchmarks.lab import enter
from benchmarks.lab.network import DEVICE
from shoestring.fleet.channel import WorkerContext
from shoestring.train import worker

ENTRY = "benchmarks.stragglers.placed:main"
HOSTS = "hosts"


def main(context: WorkerContext) -> None:
    """Enter, then train: `settings.hosts` has the network of each worker. The coordinator is reached by a
    Unix socket, which is the same everywhere."""
    payload = msgspec.json.decode(context.payload, type=worker.TrainPayload)
    enter(payload.settings[HOSTS][context.name])
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    worker.main(context)
