"""What workers, supervisor and coordinator say to each other (source: ours).

Every request may be sent again: a lost message, a lost answer or a restarted coordinator
changes nothing. The wire format is msgpack of these tagged structures; nothing is unpickled.
"""

from __future__ import annotations

import msgspec

from shoestring.base.units import format_bytes
from shoestring.fleet.job_status import JobStatus
from shoestring.fleet.shard_messages import JobBroken as JobBroken
from shoestring.fleet.shard_messages import Shard as Shard
from shoestring.fleet.shard_messages import ShardBack as ShardBack
from shoestring.fleet.shard_messages import ShardDone as ShardDone
from shoestring.fleet.shard_messages import ShardLease as ShardLease
from shoestring.fleet.shard_messages import ShardOrders as ShardOrders
from shoestring.fleet.shard_messages import ShardTold as ShardTold
from shoestring.fleet.terms import Held as Held
from shoestring.fleet.terms import Message as Message
from shoestring.fleet.terms import Update as Update

# --- worker -> coordinator -------------------------------------------------------------


class Join(Message, frozen=True):
    """A worker asks for a round.

    `step`: applied steps of the state it holds, -1 if none; `last_round`: the newest round it was
    given (-1: none), so that a repeated request and a broken round can be told apart; `problem`:
    why it left that round; `held`: its shards, None where it holds all of the state; `micro_batch`: samples
    that it takes in one pass where nothing else is decided (0: all).
    """

    worker: str
    incarnation: int
    step: int
    last_round: int = -1
    problem: str = ""
    held: Held | None = None
    micro_batch: int = 0


class StepReport(Message, frozen=True):
    """What one worker did in one step.

    `samples` positions used, in `passes` forward and backward passes; `compute_s` its own work without
    waiting for others (the batch processing time); `exchange_s` time in collectives; `metrics` and `counts`
    (what is summed up to rates, e.g. tokens): of the whole global batch, equal on every worker. `begun`: of a
    worker that the others did not wait for, samples of the passes that it had begun: at most so many were
    computed (0: as many as were used).
    """

    samples: int
    compute_s: float
    exchange_s: float
    memory_bytes: int = 0
    metrics: dict[str, float] = {}
    counts: dict[str, float] = {}
    passes: int = 1
    begun: int = 0


class Next(Message, frozen=True):
    """A worker that has applied `step` steps asks for the next order; `report` is of the last step. `notice`:
    why its machine will be taken away soon; empty: it will not."""

    worker: str
    incarnation: int
    round_id: int
    step: int
    report: StepReport | None = None
    notice: str = ""


class Failed(Message, frozen=True):
    """Samples of the order for `step` that this worker cannot use: (position, error) pairs.

    Sent and answered before the step's collectives, so that no sample is counted that was not used.
    """

    worker: str
    incarnation: int
    round_id: int
    step: int
    failures: tuple[tuple[int, str], ...]


class OutOfMemory(Message, frozen=True):
    """A pass over `samples` samples does not fit into this worker's memory. It leaves the round, in which
    nothing of the step was applied."""

    worker: str
    incarnation: int
    round_id: int
    step: int
    samples: int
    error: str


class Ready(Message, frozen=True):
    """A worker has computed its part of `step`, or as much as it was waited for, and goes into the exchange;
    sent where an order has `tell`.

    `report`: of its own work, as far as it is known then. Whoever plans the next step knows all members'
    speeds in this one, as nobody is through with it before all have said so.
    """

    worker: str
    incarnation: int
    round_id: int
    step: int
    report: StepReport


class Lagging(Message, frozen=True):
    """A worker that still computes asks whether the others go on without it."""

    worker: str
    incarnation: int
    round_id: int
    step: int


class GiveBack(Message, frozen=True):
    """A worker that was late has dropped these positions of its order for `step`. Sent and answered before
    the step's collectives, so that no sample is counted that was not used."""

    worker: str
    incarnation: int
    round_id: int
    step: int
    ranges: tuple[tuple[int, int], ...]


class Saved(Message, frozen=True):
    """A worker has written its part of the checkpoint of `step`: file name -> (bytes, sha256)."""

    worker: str
    incarnation: int
    round_id: int
    step: int
    files: dict[str, tuple[int, str]] = {}
    error: str = ""


class Recovered(Message, frozen=True):
    """A worker has got its shards for this round: in how long, and how many bytes of them it had itself, got
    from peers, made from (rounded) parameters, or read from disk."""

    worker: str
    incarnation: int
    round_id: int
    took_s: float
    own_bytes: int
    peer_bytes: int
    rounded_bytes: int
    disk_bytes: int

    def in_words(self) -> str:
        """For the record."""
        parts = {
            "kept": self.own_bytes,
            "from peers": self.peer_bytes,
            "made from parameters": self.rounded_bytes,
            "from the checkpoint": self.disk_bytes,
        }
        told = ", ".join(f"{format_bytes(size)} {how}" for how, size in parts.items() if size)
        return f"{self.worker} had its shards in {self.took_s:.2f} s: {told or 'nothing had to be moved'}"


class BadCheckpoint(Message, frozen=True):
    """A worker could not restore the checkpoint that its round named."""

    worker: str
    incarnation: int
    round_id: int
    path: str
    error: str


class Heartbeat(Message, frozen=True):
    """Sent from a thread of its own; `phase` is what the main thread does, `phase_s` for how long."""

    worker: str
    incarnation: int
    step: int
    phase: str
    phase_s: float


class Crashed(Message, frozen=True):
    """A worker is about to exit because of this error."""

    worker: str
    incarnation: int
    error: str


class KvSet(Message, frozen=True):
    """Rendezvous: publish a value for the other members of a round."""

    round_id: int
    key: str
    value: bytes


class KvGet(Message, frozen=True):
    """Rendezvous: read a value; answered by `Wait` while it is not there."""

    round_id: int
    key: str


class KvAdd(Message, frozen=True):
    """Rendezvous: add to a counter; `once` makes a repeated request count once."""

    round_id: int
    key: str
    amount: int
    once: str


# --- jobs without rounds: plain leases ---------------------------------------------------


class Lease(Message, frozen=True):
    """Ask for up to `count` samples; `request` is a number the client raises for each new request."""

    client: str
    request: int
    count: int


class Done(Message, frozen=True):
    """A lease's samples are finished."""

    client: str
    lease_id: int


# --- supervisor -> coordinator -----------------------------------------------------------


class Exit(Message, frozen=True):
    """A worker process ended."""

    worker: str
    incarnation: int
    code: int
    error: str = ""


class SupervisorTick(Message, frozen=True):
    """The supervisor's regular call: who runs, who ended since it was last answered.

    `unplaced`: those of `alive` that still wait for a machine with room for them; `notices`: workers whose
    machine will be taken away, and how that is known.
    """

    alive: tuple[tuple[str, int], ...] = ()
    exits: tuple[Exit, ...] = ()
    interrupt: bool = False
    unplaced: tuple[tuple[str, int], ...] = ()
    notices: tuple[tuple[str, str], ...] = ()


# --- answers -----------------------------------------------------------------------------


class Wait(Message, frozen=True):
    """Nothing to say yet: ask again after `retry_s`."""

    retry_s: float


class Round(Message, frozen=True):
    """A formed round.

    `step`: applied steps of the state that this round starts from. `source_rank`: who holds it
    (-1: nobody; restore `checkpoint`, or initialise from the seed where that is empty). Where state is cut,
    `held` has each member's shards by rank, None for who brings none, `source_rank` is the first who brings
    some, and optimizer moments that nobody has come from `checkpoint` (zeros where that is empty).
    `servers`: who holds the parameters, where workers do not; a worker's round has itself alone as member.
    """

    round_id: int
    rank: int
    members: tuple[str, ...]
    step: int
    source_rank: int
    checkpoint: str = ""
    held: tuple[Held | None, ...] = ()
    servers: tuple[str, ...] = ()


class Order(Message, frozen=True):
    """One step of one worker.

    `ranges`: half-open ranges of positions; `batch`: positions of the whole global batch; `progress`: share
    of the run that is over, in [0, 1]; `micro_batch`: samples of one pass of this worker (0: all); `passes`:
    the most that a member makes, so that all can make the same number where passes have collectives in
    them; `lr_factor`: on the schedule's learning rate; `backups`: so many members need not be waited for;
    `tell`: members of a round say Ready before the exchange; `window_s`: after so long the rest is to be
    given back (0: never). All of it holds for this step alone, so whoever comes later misses nothing.
    Where servers hold the parameters, `step` is the number of the
    worker's push, and the servers have to be told of `updates` before parameters are read.
    """

    step: int
    ranges: tuple[tuple[int, int], ...]
    batch: int
    progress: float
    micro_batch: int = 0
    passes: int = 0
    lr_factor: float = 1.0
    backups: int = 0
    tell: bool = False
    window_s: float = 0.0
    updates: tuple[Update, ...] = ()


class Updates(Message, frozen=True):
    """To a server: these come next; none, where nothing is new."""

    updates: tuple[Update, ...] = ()


class Save(Message, frozen=True):
    """Save the state after `step` into `directory`, then send Saved until it is Committed."""

    step: int
    directory: str


class Regroup(Message, frozen=True):
    """This round is over: send Join."""

    reason: str


class Dismissed(Message, frozen=True):
    """This incarnation is not wanted any more: exit without touching anything."""

    reason: str


class Stop(Message, frozen=True):
    """The run is over."""

    reason: str


class Ack(Message, frozen=True):
    """Received."""


class Verdict(Message, frozen=True):
    """Whether the others go on without who asks; if not, it may ask again after `retry_s`."""

    late: bool
    retry_s: float


class Committed(Message, frozen=True):
    """The checkpoint of `step` is committed (`ok`) or was given up; go on either way."""

    step: int
    ok: bool


class Value(Message, frozen=True):
    """A rendezvous value or counter."""

    value: bytes


class Leased(Message, frozen=True):
    """A lease: its number and its half-open ranges of positions; none left when `ranges` is empty."""

    lease_id: int
    ranges: tuple[tuple[int, int], ...]


class DoneReply(Message, frozen=True):
    """`counted`, `late` or `duplicate`."""

    outcome: str


class Status(Message, frozen=True):
    """What a person wants to see live; `job`: of a job over rows."""

    step: int = 0
    progress: float = 0.0
    elapsed_s: float = 0.0
    eta_s: float = 0.0
    metrics: dict[str, float] = {}
    rates: dict[str, float] = {}
    workers: dict[str, dict[str, float | str]] = {}
    todo: int = 0
    doing: int = 0
    done: int = 0
    dead: int = 0
    round_id: int = 0
    messages: tuple[str, ...] = ()
    job: JobStatus | None = None


class SupervisorOrders(Message, frozen=True):
    """What the supervisor does now: start these, kill those; `outcome` is set when the run is over."""

    spawn: tuple[tuple[str, int], ...] = ()
    kill: tuple[tuple[str, int], ...] = ()
    status: Status = Status()
    outcome: str = ""
    error: str = ""
    todo: str = ""


class Refused(Message, frozen=True):
    """The coordinator met an error of its own; it stands in the run record too."""

    what: str
    todo: str


Request = (
    Join
    | Next
    | Failed
    | OutOfMemory
    | Ready
    | Lagging
    | GiveBack
    | Saved
    | Recovered
    | BadCheckpoint
    | Heartbeat
    | Crashed
    | KvSet
    | KvGet
    | KvAdd
    | Lease
    | Done
    | ShardLease
    | ShardDone
    | ShardBack
    | JobBroken
    | ShardTold
    | SupervisorTick
)
Reply = (
    Wait
    | Round
    | Order
    | Updates
    | Save
    | Regroup
    | Dismissed
    | Stop
    | Ack
    | Verdict
    | Committed
    | Value
    | Leased
    | DoneReply
    | Shard
    | ShardOrders
    | SupervisorOrders
    | Refused
)

_ENCODER = msgspec.msgpack.Encoder()
_REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """Message -> msgpack bytes."""
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> Request:
    """Bytes -> request. Raises msgspec.DecodeError on anything else."""
    return _REQUESTS.decode(data)


def decode_reply(data: bytes) -> Reply:
    """Bytes -> reply. Raises msgspec.DecodeError on anything else."""
    return _REPLIES.decode(data)
