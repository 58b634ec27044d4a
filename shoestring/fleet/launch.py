"""What a run needs to be started on any transport, and how it ended (source: ours)."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError
from shoestring.base.record import RunRecord
from shoestring.data.ledger import LedgerSpec
from shoestring.data.outputs import Outputs
from shoestring.data.store import DurableLedger
from shoestring.data.stores import SqlStore
from shoestring.fleet.channel import Answerer, WorkerMain
from shoestring.fleet.checkpoints import DiskKeeper
from shoestring.fleet.config import FleetConfig
from shoestring.fleet.coordinator import Coordinator
from shoestring.fleet.outputs_spec import OutputsSpec as OutputsSpec
from shoestring.fleet.publisher import Publisher
from shoestring.fleet.served import ServedCoordinator
from shoestring.fleet.shards import ShardCoordinator


@dataclass(frozen=True)
class Launch:
    """A run to start or to resume.

    Attributes:
        run_dir: the run's directory; made when missing.
        fleet: the fleet's settings.
        ledger: which samples there are.
        entry: the workers' main as `package.module:function`.
        payload: the job's description for its workers (JSON or msgpack).
        device: `cpu` (workers are forked) or `cuda` (fresh interpreters).
        threads: compute threads of each worker.
        ledger_url: where the ledger is kept; empty: in the run's directory.
        outputs: of a job over rows; None: the workers train.
    """

    run_dir: Path
    fleet: FleetConfig
    ledger: LedgerSpec
    entry: str
    payload: bytes = b""
    device: str = "cpu"
    threads: int = 1
    ledger_url: str = ""
    outputs: OutputsSpec | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `interrupted` or `failed`; for the last, why and what to do."""

    status: str
    error: str = ""
    todo: str = ""

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        codes = {"finished": 0, "interrupted": 130, "failed": FleetError.exit_code}
        return codes[self.status]


def build_coordinator(launch: Launch, clock: Clock, resumed: bool) -> tuple[Answerer, RunRecord]:
    """The coordinator of a run, from its store where there is one, and the record it writes to.

    Args:
        resumed: whether no worker of an earlier coordinator can be alive.

    Raises:
        LedgerError: the store is damaged, in use, or belongs to other data.
        SinkError: the sink belongs to another job, or cannot be written.
        RecordError: the event log cannot be opened.
    """
    url = launch.ledger_url or f"sqlite:///{launch.run_dir / 'ledger.db'}"
    record = RunRecord(launch.run_dir / "events.jsonl", "coordinator", clock)
    if launch.outputs is not None:
        return _shards(launch, launch.outputs, url, record, clock, resumed), record
    ledger = DurableLedger.open(url, launch.ledger)
    keeper = DiskKeeper(launch.run_dir / "checkpoints", launch.fleet.checkpoint.keep)
    kind = ServedCoordinator if launch.fleet.servers.count else Coordinator
    return kind(launch.fleet, ledger, keeper, record, clock.now(), resumed), record


def _shards(
    launch: Launch, spec: OutputsSpec, url: str, record: RunRecord, clock: Clock, resumed: bool
) -> ShardCoordinator:
    # The bound on rows with an error is the spec's, with those given up; the ledger has none of its own.
    rows = msgspec.structs.replace(launch.ledger, max_dead_share=1.0)
    # A database that was named may hold the ledgers of other jobs, too.
    job = spec.job if launch.ledger_url else ""

    def told(text: str) -> None:
        record.append("fault", reason=text)

    store = SqlStore(url, job, told=told)
    ledger = DurableLedger.open(store, rows)
    outputs = Outputs(spec.sink, spec.job)
    publisher = Publisher(outputs, aside=outputs.remote)
    made = ShardCoordinator(launch.fleet, spec, ledger, publisher, record, clock.now(), resumed)
    store.told = made.fault
    return made


def load_entry(entry: str) -> WorkerMain:
    """The function that `package.module:function` names.

    Raises:
        FleetError: there is no such module or function.
    """
    module, _, name = entry.partition(":")
    try:
        return cast(WorkerMain, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise FleetError(
            f"there is no worker entry {entry!r}: {error}", "name it as `package.module:function`"
        ) from error
