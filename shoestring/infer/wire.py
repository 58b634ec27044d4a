"""What a worker's engine and its child processes say to each other (source: ours).

Frames as on the coordinator's socket, msgpack within; rows themselves are in segments of shared memory, which
these messages name. Nothing is pickled.
"""

from __future__ import annotations

import msgspec

from shoestring.data.output_state import Ranges, Staged


class InferPayload(msgspec.Struct, frozen=True):
    """What a worker is started with.

    Attributes:
        config: an InferConfig as JSON.
        index: path of the saved RowIndex.
        job: a token of this job, part of the names of what it stages.
        schemas: stage -> the Arrow schema (serialised) of its output columns, from the trial; of one item.
        chunk_rows, batches, processes: what the trial has found best to begin with (batches: stage -> items;
            processes: pool -> how many).
    """

    config: bytes
    index: str
    job: str
    schemas: dict[str, bytes] = {}
    chunk_rows: int = 0
    batches: dict[str, int] = {}
    processes: dict[str, int] = {}


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """Items [start, stop) of the table in a segment."""

    segment: str
    start: int
    stop: int


# --- engine -> child ---------------------------------------------------------------------------


class Order(msgspec.Struct, frozen=True, tag=True):
    """Base; `task` is a number that no other order of this engine has."""

    task: int


class Load(Order, frozen=True):
    """Read these positions into a segment of this name."""

    ranges: Ranges
    segment: str


class Predict(Order, frozen=True):
    """One batch: the items of `parts` in this order; the answer goes into a segment of this name."""

    parts: tuple[Ref, ...]
    segment: str


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """Rows as a loader has read them: the segment, their positions, errors by place."""

    segment: str
    ranges: Ranges
    errors: dict[int, str]


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """What a stage made of items [start, stop) of segment `source`.

    Attributes:
        answer: the segment of what came out, from item `at` of it on; empty where all of them failed.
        counts: int32, little-endian: items that came out of each item that went in; empty: one each (also of
            those with an error, whose values mean nothing).
        errors: place, counted from `start` -> what is wrong.
    """

    source: str
    start: int
    stop: int
    answer: str
    at: int
    counts: bytes
    errors: dict[int, str]


class Write(Order, frozen=True):
    """Put a shard together and stage its file.

    Attributes:
        who: of this worker, for the name of the staged file.
        chunks: in the order of the rows.
        pieces: stage -> pieces, in the order of (chunk or parent's piece, start). Items whose parent failed
            or came with an error have none.
        verdicts: position -> error, of rows that went through no stage.
    """

    lease_id: int
    who: str
    ranges: Ranges
    chunks: tuple[Chunk, ...]
    pieces: dict[str, tuple[Piece, ...]]
    verdicts: dict[int, str] = {}


class Discard(Order, frozen=True):
    """To a writer: remove what was staged."""

    staged: Staged


Orders = Load | Predict | Write | Discard


# --- child -> engine -----------------------------------------------------------------------------


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What a task took: seconds, seconds of CPU, resident bytes of the process after it; and whether that
    holds a GPU (None: it was given none)."""

    took_s: float
    cpu_s: float
    memory_bytes: int
    gpu: bool | None = None


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Base; -1: of no task."""

    task: int


class Up(Reply, frozen=True):
    """The child is set up, after so long; for a stage: whether it takes many batches at a time, and how many
    items it would take now (-1: no such bound)."""

    took_s: float
    streams: bool = False
    room: int = -1


class Loaded(Reply, frozen=True):
    """Rows are in the segment. `beyond_rows`: decoded beyond them, for reads to come; less than 0: so many of
    them had been before."""

    rows: int
    size_bytes: int
    errors: dict[int, str]
    cost: Cost
    beyond_rows: int = 0


class Predicted(Reply, frozen=True):
    """A batch is through: `rows` items in the answer's segment; `counts`, `errors` as in Piece, over the
    whole batch."""

    rows: int
    size_bytes: int
    counts: bytes
    errors: dict[int, str]
    cost: Cost
    room: int = -1


class Wrote(Reply, frozen=True):
    """A shard is staged (None: it was a Discard)."""

    staged: Staged | None
    cost: Cost


class Raised(Reply, frozen=True):
    """A task failed, or setting up did (task -1). The child lives, unless it is its setup.

    Attributes:
        kind: `memory`: it did not fit, and may with fewer items; `stage`: the user's code raised; `sink`: the
            sink cannot be written; `config`: what was given is wrong; `other`.
        signature: the same for the same failure: type and place.
        text: for the `error` column, one line.
        detail: the traceback.
        todo: what a user can do; empty: nothing is known.
    """

    kind: str
    signature: str
    text: str
    detail: str
    todo: str = ""


Replies = Up | Loaded | Predicted | Wrote | Raised
