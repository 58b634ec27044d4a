"""Settings of a batch inference job; every default stands here and nowhere else."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from shoestring.base.config import Config
from shoestring.control.pools import PoolsConfig
from shoestring.data.row_index import RowSourceConfig
from shoestring.data.sink_config import SinkConfig
from shoestring.fleet.config import FleetConfig

ROWS = "rows"
"""The source, as a stage's `after`."""


class StageConfig(Config):
    """One stage.

    Attributes:
        name: empty: that of `uses`, in short.
        kind: what `uses` names. `auto`: by its look (`module:Class`, `file.py:Class`, `.onnx`, `.pt2`, a
            folder of Hugging Face's, a run of ours).
        uses: `module:Class` or `file.py:Class`; a path. For `images` nothing.
        options: what the class is made with, or what the kind understands (each kind's page tells).
        after: the stage whose items come in, `rows` for the source; empty: the stage before in the list.
        batch: target batch size in items; 0: found out while it runs.
        max_wait_s: a batch that is not full is worked on after that long, where the stage has nothing else.
        processes: of each worker; 0: the controller decides.
        device: `cpu`, `cuda`, or empty: a GPU where there is one.
        device_share: part of a GPU that one process needs; 0.5 lets two share one, of this stage or another.
            It bounds how many there are beyond one of each, unless `processes` says.
        keep: whether its columns stay in the output; None: those of stages that nothing comes after.
        columns: that it reads (others are not copied to it); empty: all.
        memory_bytes: a process that holds more is restarted, its batch halved; 0: no bound, and batches grow
            while a process holds no more than the worker's other processes leave it.
        hang_s: a process whose batch takes longer is restarted; 0: `limits.hang_s`.
    """

    name: str = ""
    kind: Literal["auto", "code", "huggingface", "onnx", "export", "checkpoint", "images"] = "auto"
    uses: str = ""
    options: dict[str, Any] = Field(default_factory=dict)
    after: str = ""
    batch: int = Field(default=0, ge=0)
    max_wait_s: float = Field(default=0.2, ge=0.0)
    processes: int = Field(default=0, ge=0)
    device: Literal["", "cpu", "cuda"] = ""
    device_share: float = Field(default=1.0, gt=0.0, le=1.0)
    keep: bool | None = None
    columns: tuple[str, ...] = ()
    memory_bytes: int = Field(default=0, ge=0)
    hang_s: float = Field(default=0.0, ge=0.0)


class LimitsConfig(Config):
    """What is borne.

    Attributes:
        hang_s: a loader's, stage's or writer's process that works on one thing for longer is restarted.
        setup_s: the same for a stage's `setup`.
        memory_bytes: of a loader or writer; 0: no bound.
        segment_bytes: of shared memory for rows in flight, of one worker; 0: a quarter of the machine's
            memory, divided among the workers there.
        max_error_share: rows that may fail, of all; beyond it the job stops.
        min_errors: so many may fail in any case.
        bug_rows: if the first so many rows of a stage all fail in the same way, that is a bug, and the job
            stops; after a trial that went well it takes 16 times as many.
        max_attempts: of a shard whose worker was lost.
        drain_s: after Ctrl-C, work in hand may take that long to be finished.
    """

    hang_s: float = Field(default=300.0, gt=0.0)
    setup_s: float = Field(default=600.0, gt=0.0)
    memory_bytes: int = Field(default=0, ge=0)
    segment_bytes: int = Field(default=0, ge=0)
    max_error_share: float = Field(default=0.05, ge=0.0, le=1.0)
    min_errors: int = Field(default=10, ge=0)
    bug_rows: int = Field(default=8, ge=1)
    max_attempts: int = Field(default=3, ge=1)
    drain_s: float = Field(default=10.0, ge=0.0)


class ShardsConfig(Config):
    """How rows are handed out.

    Attributes:
        rows: of a shard, which is one file of the output; 0: chosen from the trial, so that it takes
            `target_s`.
        target_s: see `rows`.
        chunk_rows: rows that a loader reads at a time; 0: chosen from the size of rows.
        ahead: shards that a worker holds at a time.
    """

    rows: int = Field(default=0, ge=0)
    target_s: float = Field(default=10.0, gt=0.0)
    chunk_rows: int = Field(default=0, ge=0)
    ahead: int = Field(default=3, ge=1)


class TrialConfig(Config):
    """The dry run before the job: `rows` rows through all stages; what each costs, and the output's
    schema."""

    rows: int = Field(default=100, ge=1)


class InferConfig(Config):
    """A batch inference job.

    Attributes:
        ledger_url: SQLAlchemy's URL of the ledger; empty: SQLite in the run's directory. For jobs over many
            hosts `postgresql+psycopg://user@host/name`.
    """

    job: Literal["infer"] = "infer"
    source: RowSourceConfig = RowSourceConfig()
    stages: tuple[StageConfig, ...] = ()
    sink: SinkConfig = SinkConfig()
    shards: ShardsConfig = ShardsConfig()
    limits: LimitsConfig = LimitsConfig()
    pools: PoolsConfig = PoolsConfig()
    trial: TrialConfig = TrialConfig()
    fleet: FleetConfig = FleetConfig()
    ledger_url: str = ""
    seed: int = 0
