"""What a worker's child does: orders in, replies out, until its socket is closed (source: ours)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.errors import InferError
from shoestring.data.row_index import RowIndex
from shoestring.infer.batch import StageContext, StreamStage
from shoestring.infer.births import LOAD, STAGE, WRITE, Birth, Settings
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.graph import Graph
from shoestring.infer.loading import Loader
from shoestring.infer.predicting import Batches, Predictor, Streamer
from shoestring.infer.shared import Segments
from shoestring.infer.talk import Gone, Line
from shoestring.infer.telling import Meter, closed, let_go, raised
from shoestring.infer.wire import Discard, Load, Orders, Predict, Raised, Replies, Up, Write
from shoestring.infer.writing import Writer

LoadStage = Callable[[StageConfig, StageContext], Any]
"""(settings, context) -> a Stage or StreamStage, set up."""


def live(
    birth: Birth,
    settings: Settings,
    index: RowIndex | None,
    end: socket.socket,
    load_stage: LoadStage | None = None,
    clock: Clock | None = None,
) -> None:
    """Set up, and work until the engine hangs up.

    Args:
        birth: which child this is.
        settings: of the worker.
        index: of the rows, where the nursery could read it.
        end: the socket to the engine.
        load_stage: for tests; None: `stages.load_stage`.
        clock: for tests.
    """
    line: Line[Orders] = Line(end, msgspec.msgpack.Decoder(Orders))
    clock = clock or SystemClock()
    began_s = clock.now()
    otherwise = "stage" if birth.role.startswith(STAGE) else "other"
    try:
        work = _work(birth, settings, index, clock, load_stage or _load_stage)
    except BaseException as error:  # noqa: BLE001  told to the engine, whatever it is
        _tell(line, raised(-1, error, otherwise))
        return
    try:
        line.send(Up(-1, clock.now() - began_s, isinstance(work, Streamer), work.room))
        if isinstance(work, Streamer):
            work.serve(line)
        else:
            _serve(line, work, otherwise)
    except Gone:
        pass  # the engine has no more work, or is no more
    finally:
        closed(work.close)
        line.close()


class Loads:
    """The loader, as a child has it."""

    room = -1

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def do(self, order: Orders) -> Replies:
        """Load only."""
        if not isinstance(order, Load):
            raise _not_for(LOAD, order)
        return self._loader.do(order)

    def close(self) -> None:
        """Let go of what is open."""
        self._loader.close()


class Predicts:
    """A stage that takes a batch at a time, as a child has it."""

    room = -1

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def do(self, order: Orders) -> Replies:
        """Predict only."""
        if not isinstance(order, Predict):
            raise _not_for("a stage", order)
        return self._predictor.do(order)

    def close(self) -> None:
        """Close the stage."""
        self._predictor.close()


class Writes:
    """The writer, as a child has it."""

    room = -1

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def do(self, order: Orders) -> Replies:
        """Write and Discard."""
        if not isinstance(order, Write | Discard):
            raise _not_for(WRITE, order)
        return self._writer.write(order) if isinstance(order, Write) else self._writer.discard(order)

    def close(self) -> None:
        """Nothing is held."""


def _serve(line: Line[Orders], work: Loads | Predicts | Writes, otherwise: str) -> None:
    while True:
        for order in line.receive(None):
            try:
                reply: Replies = work.do(order)
            except BaseException as error:  # noqa: BLE001  told to the engine, whatever it is
                reply = raised(order.task, error, otherwise)
            if isinstance(reply, Raised):
                let_go(reply.kind == "memory")
            line.send(reply)


def _work(
    birth: Birth, settings: Settings, index: RowIndex | None, clock: Clock, load_stage: LoadStage
) -> Loads | Predicts | Writes | Streamer:
    payload = settings.payload
    config = InferConfig.model_validate_json(payload.config)
    segments = Segments(Path(settings.folder))
    meter = Meter(clock, gpu=birth.device.startswith("cuda"))
    if birth.role in (LOAD, WRITE):
        index = index or RowIndex.load(Path(payload.index))
        if birth.role == LOAD:
            return Loads(Loader(index, segments, config.source.max_row_bytes, meter))
        return Writes(Writer(config, index, segments, payload, meter))
    name = birth.role.removeprefix(STAGE)
    nodes = Graph.of(config, None).nodes
    if name not in nodes:
        raise InferError(f"no child does {birth.role!r}", "this is a bug in shoestring: tell its makers")
    node = nodes[name]
    context = StageContext(name, birth.device, birth.device_share, birth.threads, config.seed)

    def make() -> Any:
        return load_stage(node.config, context)

    agreed = pa.ipc.read_schema(pa.py_buffer(payload.schemas[name])) if name in payload.schemas else None
    batches = Batches(node, segments, agreed)
    stage = make()
    if isinstance(stage, StreamStage):
        return Streamer(batches, stage, make, meter)
    return Predicts(Predictor(batches, stage, meter))


def _load_stage(config: StageConfig, context: StageContext) -> Any:
    from shoestring.infer.stages import load_stage  # with all that it imports: loaders and writers need none

    return load_stage(config, context)


def _not_for(role: str, order: Orders) -> InferError:
    return InferError(
        f"{role} was told to {type(order).__name__}", "this is a bug in shoestring: tell its makers"
    )


def _tell(line: Line[Orders], reply: Replies) -> None:
    with contextlib.suppress(Gone):
        line.send(reply)
