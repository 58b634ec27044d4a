"""Matrix rates of this machine, measured in a child process.

The process that starts workers must never have run a parallel kernel: a forked child would inherit
thread pools whose threads do not exist in it, and hang at its first one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import torch

import shoestring
from shoestring.base.errors import FleetError
from shoestring.models.precision import matmul_rates

Rates = dict[str, dict[str, float]]


def rates_by_threads(threads: list[int]) -> Rates:
    """Number of threads (as text) -> compute dtype -> floating-point operations a second.

    Raises:
        FleetError: the measuring process died.
    """
    data = _in_new_interpreter(threads) if torch.cuda.is_available() else _in_fork(threads)
    if not data:
        raise FleetError(
            "the process that measures this machine died", "look at the system's log; free some memory"
        )
    return msgspec.json.decode(data, type=Rates)


def _in_fork(threads: list[int]) -> bytes:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, msgspec.json.encode(_measure(threads)))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return data


def _in_new_interpreter(threads: list[int]) -> bytes:
    """CUDA cannot be used in a fork of a process that has asked for it."""
    reading, writing = os.pipe()
    ours = str(Path(shoestring.__file__).parents[1])
    known = os.environ["PYTHONPATH"] if "PYTHONPATH" in os.environ else ""
    child = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import tell; tell({threads}, {writing})"],
        pass_fds=(writing,),  # imports may print what they like
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (ours, known)))},
    )
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    child.wait()
    return data


def tell(threads: list[int], writing: int) -> None:
    """Measure, and write what came of it to a file descriptor as JSON."""
    os.write(writing, msgspec.json.encode(_measure(threads)))


def _measure(threads: list[int]) -> Rates:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {}
    for count in threads:
        torch.set_num_threads(count)
        rates[str(count)] = {str(name): rate for name, rate in matmul_rates(device).items()}
    return rates
