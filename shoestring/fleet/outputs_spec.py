"""What makes a run a job over rows (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass

from shoestring.data.sink_config import SinkConfig


@dataclass(frozen=True)
class OutputsSpec:
    """Workers get plain shards, and their output is committed.

    Attributes:
        sink: where the output goes. With workers on several hosts on storage that all of them, and the
            host of the coordinator, reach by this path.
        job: a token of the job, which marks what is staged.
        shard_rows: rows of a shard, which is one file of the output; fewer towards the end of the job.
        max_error_share, min_errors: the job fails when more rows than either allows have an error.
        drain_s: workers that have to go may finish what they have in hand for that long.
    """

    sink: SinkConfig
    job: str
    shard_rows: int
    max_error_share: float = 0.05
    min_errors: int = 10
    drain_s: float = 10.0
