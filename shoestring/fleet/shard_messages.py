"""What workers of jobs over rows and their coordinator say to each other (source: ours).

Every request may be sent again. A shard is a plain lease of the ledger; its output is committed with `done`.
"""

from __future__ import annotations

from shoestring.data.output_state import Ranges, Staged
from shoestring.fleet.job_status import PoolShown
from shoestring.fleet.terms import Message


class ShardLease(Message, frozen=True):
    """A worker asks for a shard; `request` is a number that it raises for each new request. Answered by
    `Shard`, `Wait` (others may still give rows back), `Stop` (nothing is left, or the job is over),
    `Dismissed`."""

    worker: str
    incarnation: int
    request: int


class ShardDone(Message, frozen=True):
    """A shard's rows are staged, durable. Answered by `DoneReply`: `counted`, `late` (the shard is somebody
    else's now: the worker removes what it has staged) or `duplicate` (it was counted before)."""

    worker: str
    incarnation: int
    lease_id: int
    staged: Staged


class ShardBack(Message, frozen=True):
    """A worker gives a shard back, unfinished, for this reason. Answered by `Ack`."""

    worker: str
    incarnation: int
    lease_id: int
    reason: str


class JobBroken(Message, frozen=True):
    """Going on makes no sense: a bug in a stage, a sink that cannot be written. The job fails with this.
    Answered by `Ack`.

    Attributes:
        what, todo: for the user, traceback and the row that showed it within `what`.
    """

    worker: str
    incarnation: int
    what: str
    todo: str


class PoolChange(Message, frozen=True):
    """A decision of a worker about its own processes, for the record.

    Attributes:
        action: `resize`, `batch`, `restart` and so on.
        fields: what belongs to it (numbers or short texts).
    """

    action: str
    pool: str
    reason: str
    fields: dict[str, float | str] = {}


class ShardTold(Message, frozen=True):
    """A worker tells how it gets on, about once a second. Answered by `ShardOrders`.

    Attributes:
        changes, faults: that were not told of before, as far as the worker knows.
        changes_from, faults_from: how many were told of, and answered, before these: so that a repeated
            message counts once.
        begun: rows that are in hand.
        notice: why this worker's machine will be taken away soon; empty: it will not.
    """

    worker: str
    incarnation: int
    pools: tuple[PoolShown, ...] = ()
    changes: tuple[PoolChange, ...] = ()
    faults: tuple[str, ...] = ()
    begun: int = 0
    notice: str = ""
    changes_from: int = 0
    faults_from: int = 0


class Shard(Message, frozen=True):
    """Rows to work on.

    Attributes:
        ranges: half-open ranges of positions.
        verdicts: of positions that are given up (their worker was lost with them too often): what is to stand
            in their `error` column; they go through no stage.
    """

    lease_id: int
    ranges: Ranges
    verdicts: dict[int, str] = {}


class ShardOrders(Message, frozen=True):
    """Whether to take more shards.

    Attributes:
        leave_s: finish what is in hand within so many seconds, give the rest back, and go; below 0: go on.
        reason: for either.
        give_back: so many shards that this worker has not begun are wanted by others, who are idle: give
            them back (`ShardBack`); those begun stay.
    """

    leave_s: float = -1.0
    reason: str = ""
    give_back: int = 0
