"""The writer's side: a shard put together, and one staged file of it (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import pyarrow as pa

from shoestring.data.output_state import Staged
from shoestring.data.outputs import Staging
from shoestring.data.row_index import RowIndex
from shoestring.infer.assemble import Shard
from shoestring.infer.config import InferConfig
from shoestring.infer.graph import Graph
from shoestring.infer.schemas import agreed
from shoestring.infer.shared import Segments
from shoestring.infer.telling import Meter
from shoestring.infer.wire import Discard, InferPayload, Write, Wrote


class StagesFile(Protocol):
    """A file being staged; see data.outputs.StagedWriter."""

    def write(self, table: pa.Table) -> None:
        """More rows."""
        ...

    def close(self) -> Staged:
        """It is whole and durable."""
        ...

    def abort(self) -> None:
        """It never was."""
        ...


class Stages(Protocol):
    """Where files are staged; see data.outputs.Staging."""

    def writer(self, lease_id: int, who: str, schema: pa.Schema) -> StagesFile:
        """A new file."""
        ...

    def discard(self, staged: Staged) -> None:
        """Remove one."""
        ...


class Writer:
    """Writes shards.

    Args:
        config: of the job.
        index: of its rows.
        segments: where they are.
        payload: schemas from the trial, and the job's token.
        staging: for tests; None: what the sink's settings say.
    """

    def __init__(
        self,
        config: InferConfig,
        index: RowIndex,
        segments: Segments,
        payload: InferPayload,
        meter: Meter,
        staging: Stages | None = None,
    ) -> None:
        self._graph = Graph.of(config, index.schema)
        self._columns = config.sink.columns
        self._index = index
        self._segments = segments
        self._meter = meter
        self._staging: Stages = staging or Staging(config.sink, payload.job)
        self._schemas = {name: pa.ipc.read_schema(pa.py_buffer(one)) for name, one in payload.schemas.items()}

    def write(self, order: Write) -> Wrote:
        """Stage one shard's file.

        Raises:
            SinkError: it cannot be written.
            InferError: what came does not fit together.
        """
        self._meter.start()
        schemas = self._known(order)
        shard = Shard(self._graph, self._index, schemas, self._columns, order, self._segments.read)
        file = self._staging.writer(order.lease_id, order.who, shard.schema)
        try:
            for table in shard.slabs():
                file.write(table)
            staged = file.close()
        except BaseException:
            file.abort()
            raise
        return Wrote(order.task, staged, self._meter.cost())

    def discard(self, order: Discard) -> Wrote:
        """Remove what was staged and is not wanted."""
        self._meter.start()
        self._staging.discard(order.staged)
        return Wrote(order.task, None, self._meter.cost())

    def _known(self, order: Write) -> Mapping[str, pa.Schema]:
        """As agreed upon in the trial; in the trial itself, as what was answered has it."""
        known = dict(self._schemas)
        read: Callable[[str], pa.Table] = self._segments.read
        for name in self._graph.nodes:
            if name not in known:
                pieces = order.pieces[name] if name in order.pieces else ()
                known[name] = agreed(read(one).schema for one in {piece.answer for piece in pieces} if one)
        return known
