"""The entry point of a worker of a batch inference job: payload in, children, a seat, the engine (source:
ours)."""

from __future__ import annotations

import signal
import threading
import traceback
from pathlib import Path
from types import FrameType

import msgspec

from shoestring.cluster.topology import usable_cores
from shoestring.control.pools import decide
from shoestring.fleet.channel import WorkerContext
from shoestring.fleet.names import number_of
from shoestring.fleet.seat import DismissedError
from shoestring.fleet.shard_seat import ShardSeat
from shoestring.infer.config import InferConfig
from shoestring.infer.desk import BackDesk, Desk
from shoestring.infer.engine import Engine, Tools
from shoestring.infer.graph import Graph
from shoestring.infer.kids import NurseryKids
from shoestring.infer.layout import Setting
from shoestring.infer.nursery import Nursery
from shoestring.infer.placement import budget_for, devices_of, index_at, look, outfits, workers_here
from shoestring.infer.shared import Segments
from shoestring.infer.wire import InferPayload

ENTRY = "shoestring.infer.worker:main"


def main(context: WorkerContext) -> None:
    """Work until told to stop; no process and no shared memory is left when this returns.

    Raises:
        ShoestringError: whatever made this worker unable to go on; the coordinator was told.
    """
    payload = msgspec.msgpack.decode(context.payload, type=InferPayload)
    config = InferConfig.model_validate_json(payload.config)
    segments = Segments.make()
    try:
        spawn = context.device == "cuda" or threading.active_count() > 1
        # Before the first thread, which is the heartbeat's: children are forked.
        nursery = Nursery.start(payload, segments.folder, context.run_dir, context.name, spawn)
        try:
            _sit(context, payload, config, segments, nursery)
        finally:
            nursery.close()
    finally:
        segments.close()


def _sit(
    context: WorkerContext, payload: InferPayload, config: InferConfig, segments: Segments, nursery: Nursery
) -> None:
    seat = ShardSeat(context.name, context.incarnation, context.open_channel, context.clock, context.config)
    with seat:
        try:
            index = index_at(Path(payload.index))
            graph = Graph.of(config, index.schema)
            setting = setting_of(context, payload, config, index.rows)
            tools = Tools(
                kids=NurseryKids(nursery, outfits(graph, setting.cores)),
                desk=BackDesk(Desk(seat, context.clock)),
                clock=context.clock,
                remove=segments.remove,
                identity=lambda at: index.identities(at, at + 1)[0],
                budget=budget_for(config, segments),
                look=lambda budget: look(budget, segments),
                decide=decide,
            )
            engine = Engine(config, graph, setting, tools)
            _heed_notices(engine)
            engine.run()
        except DismissedError:
            return
        except Exception:
            seat.crashed(traceback.format_exc())
            raise


def setting_of(context: WorkerContext, payload: InferPayload, config: InferConfig, rows: int) -> Setting:
    """What an engine is told of this worker.

    Raises:
        ConfigError: a stage wants a GPU, and there is none.
    """
    workers = workers_here(config)
    cores = max(1.0, usable_cores() / workers)
    return Setting(
        who=f"{context.name}.{context.incarnation}",
        cores=cores,
        devices=devices_of(config, number_of(context.name), workers),
        chunk_rows=payload.chunk_rows or Setting.chunk_rows,
        batches=payload.batches,
        processes=payload.processes,
        proven=frozenset(payload.schemas),
        rows=rows,
    )


def _heed_notices(engine: Engine) -> None:
    """SIGTERM is how schedulers say that a machine will be taken away."""

    def told(number: int, frame: FrameType | None) -> None:
        engine.notice = "told to go (SIGTERM)"

    # No other thread may set handlers; where the run is in one process, the user's own is there already.
    alone = threading.current_thread() is threading.main_thread()
    if alone and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, told)
