"""A trial before the job: a few rows through all stages, and what each part costs (source: ours)."""

from __future__ import annotations

from shoestring.base.clock import Clock
from shoestring.base.errors import InferError
from shoestring.data.row_index import RowIndex
from shoestring.infer.config import InferConfig
from shoestring.infer.rehearsal import Rehearsal, StageCost

__all__ = ["InferError", "Rehearsal", "StageCost", "rehearse"]


def rehearse(config: InferConfig, index: RowIndex, rows: int, clock: Clock) -> Rehearsal:
    """Run `rows` rows, evenly spread over the source, through all stages."""
    raise InferError("not there yet", "wait")
