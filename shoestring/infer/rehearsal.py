"""What a trial of a batch inference job found: plain numbers (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class StageCost:
    """What one process of a stage needs.

    Attributes:
        setup_s: until it took its first batch.
        item_s, row_s: seconds of one process for one of its items, and for one row of the source.
        items_per_row: of its items, for one row of the source.
        cpu_share: share of that work that used a core, in [0, 1] (it may be above 1 with many threads).
        schema: Arrow schema (serialised) of its output columns, of one item; empty: nothing came out.
        batch: items to begin with.
        memory_bytes: resident, of the process.
        streams: whether it takes many batches at a time.
        gpu: whether it used the GPU that it was given; None: it was given none.
    """

    name: str
    setup_s: float
    item_s: float
    row_s: float
    items_per_row: float
    cpu_share: float
    schema: bytes
    batch: int
    memory_bytes: int
    streams: bool = False
    gpu: bool | None = None


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        rows: that went through.
        load_s, write_s: seconds of one process for a row; `load_cpu_share`, `write_cpu_share`: see StageCost.
        row_bytes: of shared memory for a row, with all that the stages make of it.
        output_row_bytes: of the output's file, for a row.
        chunk_rows: that a loader should read at a time.
        errors: text -> rows, or items that a stage had of them.
        took_s: all of it, setting up included.
    """

    rows: int
    stages: dict[str, StageCost]
    load_s: float
    load_cpu_share: float
    write_s: float
    write_cpu_share: float
    row_bytes: float
    output_row_bytes: float
    chunk_rows: int
    errors: dict[str, int] = field(default_factory=dict)
    took_s: float = 0.0

    @property
    def schemas(self) -> dict[str, bytes]:
        """Stage -> schema, as InferPayload wants it."""
        return {name: cost.schema for name, cost in self.stages.items() if cost.schema}

    @property
    def batches(self) -> dict[str, int]:
        """Stage -> items of a batch, as InferPayload wants it."""
        return {name: cost.batch for name, cost in self.stages.items()}
