"""The entry point of a worker of a batch inference job (source: ours)."""

from __future__ import annotations

from shoestring.base.errors import InferError
from shoestring.fleet.channel import WorkerContext

ENTRY = "shoestring.infer.worker:main"


def main(context: WorkerContext) -> None:
    """Work until told to stop."""
    raise InferError("not there yet", "wait")
