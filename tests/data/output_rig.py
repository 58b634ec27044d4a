"""A process that works on a job's output by hand, and files whose process dies at a chosen point."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import pyarrow as pa

from shoestring.data.ledger import LedgerSpec
from shoestring.data.output_state import Output, Staged, file_name
from shoestring.data.outputs import Outputs, Staging
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_files import Files
from shoestring.data.sinks import SUFFIXES
from shoestring.data.store import DurableLedger
from shoestring.data.stores import MemoryStore

SCHEMA = pa.schema([("row", pa.int64()), ("image", pa.binary()), ("error", pa.string())])
ROWS, SHARD_ROWS = 12, 4


class Died(BaseException):
    """The process was killed at this point."""


class Mortal:
    """Files whose process dies at a numbered point: before an operation, or right after it.

    Attributes:
        points: that were passed.
        die_at: the point to die at; none: never.
    """

    def __init__(self, files: Files, die_at: int = -1) -> None:
        self._files, self.die_at, self.points = files, die_at, 0

    def _point(self) -> None:
        if self.points == self.die_at:
            raise Died
        self.points += 1

    def _do(self, act: Callable[[], Any]) -> Any:
        self._point()
        done = act()
        self._point()
        return done

    def telling(self, doing: str = "write to") -> AbstractContextManager[None]:
        return self._files.telling(doing)

    def make(self, folder: str = "") -> None:
        self._do(lambda: self._files.make(folder))

    def listed(self, folder: str = "") -> dict[str, int]:
        return self._files.listed(folder)

    def size(self, name: str) -> int | None:
        return self._files.size(name)

    def read(self, name: str) -> bytes | None:
        return self._files.read(name)

    def create(self, name: str) -> BinaryIO:
        return self._do(lambda: self._files.create(name))  # type: ignore[no-any-return]

    def settle(self, stream: BinaryIO) -> None:
        self._do(lambda: self._files.settle(stream))

    def sync(self, folder: str = "") -> None:
        self._do(lambda: self._files.sync(folder))

    def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
        return self._do(lambda: self._files.replace(name, data, fresh))  # type: ignore[no-any-return]

    def move(self, old: str, new: str) -> None:
        self._do(lambda: self._files.move(old, new))

    def remove(self, name: str) -> None:
        self._do(lambda: self._files.remove(name))


def shard(positions: range) -> pa.Table:
    return pa.table(
        {
            "row": list(positions), "image": [b"%d" % n for n in positions],
            "error": [f"bad: {n}" if n % 5 == 0 else None for n in positions],
        },
        schema=SCHEMA,
    )  # fmt: skip


def stage(staging: Staging, lease_id: int, positions: range, who: str = "w0.1") -> Staged:
    writer = staging.writer(lease_id, who, SCHEMA)
    writer.write(shard(positions))
    return writer.close()


def output_of(lease_id: int, staged: Staged, start: int, kind: str = "parquet") -> Output:
    ranges = ((start, start + staged.rows),)
    return Output(lease_id, file_name(lease_id, ranges, SUFFIXES[kind]), ranges, staged)


def work(sink: SinkConfig, store: MemoryStore, files: Files) -> None:
    """A process that opens the ledger and the sink, does all that is left, and ends the job."""
    ledger = DurableLedger.open(store, LedgerSpec(samples=ROWS, shuffle="none"))
    outputs, staging = Outputs(sink, "job", files), Staging(sink, "job", files)
    outputs.open(ledger.outputs())
    for lease in ledger.leases():
        ledger.release(lease.lease_id)
    while (lease := ledger.lease(0.0, "w", SHARD_ROWS)) is not None:
        ledger.commit()
        ((start, stop),) = lease.ranges
        staged = stage(staging, lease.lease_id, range(start, stop))
        if lease.lease_id == 1:
            staging.discard(stage(staging, lease.lease_id, range(start, stop), "w0.1"))
        ledger.complete(0.0, lease.lease_id, "w")
        output = output_of(lease.lease_id, staged, start, sink.format)
        ledger.add_output(output)
        ledger.commit()
        outputs.publish(output)
    outputs.finish({"rows": ROWS})
