"""The entry point of a training worker: payload in, a seat in the fleet, the loop (source: ours)."""

from __future__ import annotations

import importlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
import torch

from shoestring.base.errors import FleetError
from shoestring.base.host import keep_freed_memory
from shoestring.data.shuffle import Order
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.names import is_server
from shoestring.fleet.seat import DismissedError, Seat
from shoestring.train.config import TrainConfig
from shoestring.train.loop import Trainer
from shoestring.train.servers.server import Server
from shoestring.train.task import Task

ENTRY = "shoestring.train.worker:main"


class TrainPayload(msgspec.Struct, frozen=True):
    """What a training worker is told.

    Attributes:
        maker: `module:function`; called with `settings` and the run's directory, returns the Task.
        settings: the job's settings as JSON-able values.
        train: TrainConfig as JSON-able values.
        order: the sample order: samples, epochs, seed, shuffle, shard_size.
        loopback: all workers are on this machine.
        poll_s: how often a parameter server looks for news.
    """

    maker: str
    settings: dict[str, Any]
    train: dict[str, Any]
    order: dict[str, Any]
    loopback: bool = True
    poll_s: float = 0.05

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


def main(context: WorkerContext) -> None:
    """Train until told to stop.

    Raises:
        ShoestringError: whatever made this worker unable to go on; the coordinator was told.
    """
    payload = msgspec.json.decode(context.payload, type=TrainPayload)
    config = TrainConfig.model_validate(payload.train)
    keep_freed_memory()
    device = _device(context)
    if context.threads:
        torch.set_num_threads(context.threads)
    seat = Seat(context.name, context.incarnation, context.open_channel, context.clock, context.config)
    with flushed_denormals(), seat:
        _heed_notices(seat)
        try:
            task = make_task(payload.maker, payload.settings, context.run_dir)
            order = Order(**payload.order)
            if is_server(context.name):
                Server(seat, task, config, device, context.clock, payload.poll_s, payload.loopback).run()
                return
            trainer = Trainer(seat, task, config, order.sample_ids, device, context.clock, payload.loopback)
            trainer.run()
        except DismissedError:
            return
        except Exception:
            seat.crashed(traceback.format_exc())
            raise


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Numbers too small for a full mantissa are 0 inside the block.

    Near a minimum squared gradients get so small that a CPU computes with them in microcode, many times
    slower. Threads of a pool take this on from whoever starts them; a run in the user's own process leaves no
    trace.
    """
    kept = bool(torch.tensor(1e-39) * 1.0 > 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(not kept)


def _heed_notices(seat: Seat) -> None:
    """SIGTERM is how schedulers say that a machine will be taken away."""

    def told(number: int, frame: FrameType | None) -> None:
        seat.notice = "told to go (SIGTERM)"

    # No other thread may set handlers; where the run is in one process, the user's own is there already.
    alone = threading.current_thread() is threading.main_thread()
    if alone and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, told)


def make_task(maker: str, settings: dict[str, Any], run_dir: Path) -> Task:
    """Find `module:function` and let it make the Task.

    Raises:
        FleetError: there is no such function.
    """
    module, _, name = maker.partition(":")
    try:
        function: Callable[[dict[str, Any], Path], Task] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FleetError(
            f"cannot find the task {maker}: {error}", "install the package that has it on every host"
        ) from error
    return function(settings, run_dir)


def _device(context: WorkerContext) -> torch.device:
    if context.device == "cuda":
        index = context.device_index % torch.cuda.device_count()  # beside others, where there are too few
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return torch.device("cpu")
