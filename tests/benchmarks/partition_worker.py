"""A rank that sums in a ring until the link dies, says so, and sums again once it is back."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from shoestring.base.clock import SystemClock
from shoestring.parallel import rings
from shoestring.parallel.group import PeerLostError

TIMEOUT_S = 2.0
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
clock = SystemClock()
store = dist.TCPStore(
    os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, rank == 0, timeout=timedelta(seconds=30)
)


def total(ring: rings.Rings) -> float:
    values = torch.full((50_000,), float(rank + 1))
    ring.all_reduce(values, method="flat").wait()
    return float(values[0])


ring = rings.Rings([[0], [1]], rank=rank, store=store, timeout_s=TIMEOUT_S, name="first")
print("sum", total(ring), flush=True)
began_s = clock.now()
try:
    while clock.now() - began_s < 30.0:
        began_s = clock.now()
        total(ring)
except PeerLostError as error:
    print("lost", round(clock.now() - began_s, 2), str(error).splitlines()[0], flush=True)
ring.close()
healed_s = clock.now()
while True:
    try:
        with rings.Rings([[0], [1]], rank=rank, store=store, timeout_s=20.0, name="second") as again:
            print("sum", total(again), flush=True)
        break
    except PeerLostError:
        if clock.now() - healed_s > 40.0:
            raise
store.set(f"done{rank}", b"1")
store.wait([f"done{one}" for one in range(size)], timedelta(seconds=20))
