"""A backend of one's own beside the default process group, on keys that have a name (source: ours).

torch.distributed.new_group numbers its groups per process, and a group that failed in one process leaves the
numbers apart.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from shoestring.parallel.group import FORM_TIMEOUT_S


def own_backend(
    store: dist.Store, rank: int, size: int, device: torch.device, timeout_s: float, address: str = ""
) -> Any:
    """NCCL for CUDA, gloo for the CPU.

    Args:
        store: where the ranks find each other; give each backend a prefix of its own.
        timeout_s: longest wait for one message; forming has FORM_TIMEOUT_S, if that is less.
        address: of this host as the others reach it; GLOO_SOCKET_IFNAME comes first, the host's name last.

    Raises:
        RuntimeError: some member did not come in time.
    """
    if device.type == "cuda":
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = timedelta(seconds=timeout_s)
        return dist.ProcessGroupNCCL(store, rank, size, nccl)
    kind: Any = dist.ProcessGroupGloo  # its options are missing from torch's stubs
    names = interfaces()
    options = kind._Options()
    if names:
        options._devices = [kind.create_device(interface=name) for name in names]
    elif address:
        options._devices = [kind.create_device(hostname=address)]
    else:
        options._devices = [kind.create_default_device()]
    options._threads = 1
    options._timeout = timedelta(seconds=min(FORM_TIMEOUT_S, timeout_s))
    made = kind(store, rank, size, options)
    made._set_default_timeout(timedelta(seconds=timeout_s))
    return made


def interfaces() -> list[str]:
    """Network interfaces to use, by GLOO_SOCKET_IFNAME; none: the one that the host's name leads to."""
    return [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
