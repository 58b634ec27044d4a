"""The threads (CPU) or streams (CUDA) that carry out the collectives of one scope (source: ours)."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist

from shoestring.parallel.group import peer_errors
from shoestring.parallel.rings.choice import Method, Operation, Request, check_method
from shoestring.parallel.rings.connection import Connection
from shoestring.parallel.rings.engine import Exchange, Scratch
from shoestring.parallel.rings.schedule import Schedule
from shoestring.parallel.rings.seats import Seat
from shoestring.parallel.rings.streams import StreamExchange
from shoestring.parallel.rings.threads import Worker

# Shorter chunks cost more in calls than they win by leaving earlier, longer ones win nothing (measured).
CHUNK_LEAST_BYTES = 64 * 2**10
CHUNK_MOST_BYTES = 256 * 2**10
CHUNKS_A_BLOCK = 4
# A thread that is not through by then waits in gloo for a message that will not come.
STUCK_S = 1.0

Fail = Callable[[BaseException], BaseException]
Told = Callable[[Literal["began", "ended"]], None]


@dataclass(frozen=True)
class Job:
    """One collective.

    Attributes:
        what: in words, for errors.
        whole: the caller's tensor; blocks: flat views of it.
        result: flat view of the caller's shard; None for all-reduce.
        told: called as the thread that carries it out begins, and has ended; gloo only.
    """

    operation: Operation
    method: Method
    what: str
    whole: torch.Tensor
    blocks: tuple[torch.Tensor, ...]
    result: torch.Tensor | None
    request: Request
    told: Told | None = None


class Runner(Protocol):
    """Carries out the collectives of one scope."""

    seat: Seat

    @property
    def busy(self) -> bool:
        """Whether a collective is under way."""
        ...

    def submit(self, job: Job) -> Future[Any] | None:
        """Begin; the future's result is None, or the CUDA event to wait for. None: done already."""
        ...

    def watch(self) -> None:
        """From now on everything fails when a peer is gone. All ranks do this, or none."""
        ...

    def abort(self, error: BaseException) -> None:
        """Make everything under way fail with this."""
        ...

    def close(self) -> None:
        """End threads and connections."""
        ...


def chunk_items(blocks: tuple[torch.Tensor, ...], chunk_bytes: int) -> int:
    """Elements of a chunk: CHUNKS_A_BLOCK chunks a block within bounds, or what was asked for."""
    item_bytes = blocks[0].element_size()
    longest_bytes = max(block.numel() for block in blocks) * item_bytes
    by_size = min(max(longest_bytes // CHUNKS_A_BLOCK, CHUNK_LEAST_BYTES), CHUNK_MOST_BYTES)
    return max(1, (chunk_bytes or by_size) // item_bytes)


class GlooRunner:
    """One thread, and for two lanes a second one, both started when first needed.

    Args:
        connection: None for a scope of one rank.
        fail: called with what went wrong, once something has; gives the first error of all scopes.
    """

    def __init__(
        self, seat: Seat, connection: Connection | None, chunk_bytes: int, in_flight: int, fail: Fail
    ) -> None:
        self.seat = seat
        self._connection = connection
        self._chunk_bytes = chunk_bytes
        self._in_flight = in_flight
        self._fail = fail
        self._scratch = Scratch(max(chunk_bytes or CHUNK_MOST_BYTES, 16))
        self._main = Worker(f"rings-{seat.scope}")
        self._beside = Worker(f"rings-{seat.scope}-between")
        self._failed: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a collective is under way or waits."""
        return self._main.busy

    def submit(self, job: Job) -> Future[Any] | None:
        """Queue a collective.

        Raises:
            ConfigError: there is no such method.
        """
        method = check_method(job.method, job.request)
        if self._connection is None:
            _keep_own(job, self.seat, before=True)
            _keep_own(job, self.seat, before=False)
            return None
        return self._main.submit(self._run, job, method, self._connection)

    def watch(self) -> None:
        """From now on everything fails when a peer is gone. All ranks do this, or none."""
        if self._connection is not None:
            self._connection.watch(self._fail)

    def abort(self, error: BaseException) -> None:
        """Close the connection under whoever waits on it; all that was promised fails with this."""
        if self._connection is not None:
            self._failed = error
            self._connection.abort()
        self._main.fail(error)
        self._beside.fail(error)

    def close(self) -> None:
        """End the threads, then the connection. After a failure a thread may be stuck, which is not waited
        for."""
        for worker in (self._main, self._beside):
            worker.close(None if self._failed is None else STUCK_S)
        if self._connection is not None:
            self._connection.close(friendly=self._failed is None)

    def _run(self, job: Job, method: Method, connection: Connection) -> None:
        if job.told is not None:
            job.told("began")
        try:
            if self._failed is not None:
                raise self._failed
            _keep_own(job, self.seat, before=True)
            if method == "backend" and self._by_backend(job, connection):
                return
            for schedule in self.seat.schedules(job.operation, "direct" if method == "backend" else method):
                self._exchange(job, schedule, connection)
        except BaseException as error:  # noqa: BLE001  the first error of all is raised
            raise self._broken(error) from None
        finally:
            if job.told is not None:
                job.told("ended")

    def _exchange(self, job: Job, schedule: Schedule, connection: Connection) -> None:
        result = job.result if job.operation == "reduce_scatter" else None
        items = chunk_items(job.blocks, self._chunk_bytes)
        exchange = Exchange(connection, schedule, job.blocks, result, items, self._in_flight, self._scratch)
        beside = [self._beside.submit(self._lane, exchange, lane) for lane in range(1, exchange.lanes)]
        try:
            exchange.run(0)
        except BaseException as error:
            self._broken(error)
            raise
        finally:
            for lane in beside:
                lane.result()
        exchange.finish()

    def _lane(self, exchange: Exchange, lane: int) -> None:
        try:
            exchange.run(lane)
        except BaseException as error:
            # At once, not when the other lane is through: it may wait for what this one would have sent.
            self._broken(error)
            raise

    def _broken(self, error: BaseException) -> BaseException:
        self._failed = self._fail(error)
        return self._failed

    def _by_backend(self, job: Job, connection: Connection) -> bool:
        """Let the backend's own collective do it; False where it has none for such blocks."""
        with peer_errors():
            work = start_backend(job, connection, self.seat)
            if work is not None:
                work.wait(connection.timeout)
        return work is not None


def start_backend(job: Job, connection: Connection, seat: Seat) -> Any:
    """Start the backend's own collective; None where the blocks are uneven or not in the order of ranks."""
    backend = connection.backend
    flat = job.whole.detach().view(-1)
    if job.result is None:
        options = dist.AllreduceOptions()
        options.timeout = connection.timeout
        return backend.allreduce([flat], options) if flat.numel() else None
    in_order = all(block == number for block, number in zip(seat.blocks, seat.numbers, strict=True))
    if not in_order or len({block.numel() for block in job.blocks}) != 1 or not flat.numel():
        return None
    if job.operation == "all_gather":
        return backend._allgather_base(flat, job.blocks[seat.block])
    return backend._reduce_scatter_base(job.result, flat)


class CudaRunner:
    """Side streams; everything is enqueued by the caller's thread. Not tried where there is no GPU.

    Args:
        connections: one for each lane; empty for a scope of one rank.
    """

    def __init__(self, seat: Seat, connections: list[Connection], chunk_bytes: int, fail: Fail) -> None:
        self.seat = seat
        self._connections = connections
        self._chunk_bytes = chunk_bytes
        self._fail = fail
        self._streams = [torch.cuda.Stream() for _ in connections]

    @property
    def busy(self) -> bool:
        """Never: what is enqueued is the stream's."""
        return False

    def submit(self, job: Job) -> Future[Any] | None:
        """Enqueue a collective behind what the current stream has so far.

        Raises:
            ConfigError: there is no such method.
            PeerLostError: the backend refuses.
        """
        method = check_method(job.method, job.request)
        if not self._connections:
            _keep_own(job, self.seat, before=True)
            _keep_own(job, self.seat, before=False)
            return None
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream())
        try:
            with peer_errors(), torch.cuda.stream(self._streams[0]):
                self._enqueue(job, method)
                event = torch.cuda.Event()
                event.record(self._streams[0])
        except BaseException as error:
            self._fail(error)
            raise
        for tensor in (job.whole, *([] if job.result is None else [job.result])):
            for stream in self._streams:
                tensor.record_stream(stream)
        future: Future[Any] = Future()
        future.set_result(event)
        return future

    def watch(self) -> None:
        """NCCL's own watchdog does."""

    def abort(self, error: BaseException) -> None:
        """Let NCCL give up what it has begun."""
        for connection in self._connections:
            connection.abort()

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections:
            connection.close()

    def _enqueue(self, job: Job, method: Method) -> None:
        _keep_own(job, self.seat, before=True)
        if method == "backend":
            work = start_backend(job, self._connections[0], self.seat)
            if work is not None:
                work.wait()
                return
            method = "direct"
        result = job.result if job.operation == "reduce_scatter" else None
        items = chunk_items(job.blocks, self._chunk_bytes)
        for schedule in self.seat.schedules(job.operation, method):
            for stream in self._streams[1:]:
                stream.wait_stream(self._streams[0])
            StreamExchange(self._connections, self._streams, schedule, job.blocks, result, items).enqueue()
            for stream in self._streams[1:]:
                self._streams[0].wait_stream(stream)


def gloo_runner(
    store: dist.Store,
    name: str,
    seat: Seat,
    device: torch.device,
    timeout_s: float,
    chunk_bytes: int,
    in_flight: int,
    fail: Fail,
) -> Runner:
    """Connect one scope by gloo.

    Raises:
        PeerLostError: some member did not come in time.
    """
    connection = None
    if seat.size > 1:
        connection = Connection(
            store, f"{name}/{seat.name}", sorted_members(seat), seat.number, device, timeout_s
        )
    return GlooRunner(seat, connection, chunk_bytes, in_flight, fail)


def cuda_runner(
    store: dist.Store,
    name: str,
    seat: Seat,
    device: torch.device,
    timeout_s: float,
    chunk_bytes: int,
    in_flight: int,
    fail: Fail,
) -> Runner:
    """Connect one scope by NCCL, `world` twice: one connection a lane.

    Raises:
        PeerLostError: some member did not come in time.
    """
    lanes = 0 if seat.size == 1 else 2 if seat.scope == "world" else 1
    members = sorted_members(seat)
    connections = [
        Connection(store, f"{name}/{seat.name}/{lane}", members, seat.number, device, timeout_s)
        for lane in range(lanes)
    ]
    return CudaRunner(seat, connections, chunk_bytes, fail)


def sorted_members(seat: Seat) -> list[int]:
    """Global ranks in the order of their numbers on the connection."""
    return [member for _, member in sorted(zip(seat.numbers, seat.members, strict=True))]


def _keep_own(job: Job, seat: Seat, before: bool) -> None:
    """Put this rank's own block where it belongs: for all-gather before the exchange; alone, after it too."""
    if job.result is None or not job.result.numel():
        return
    own = job.blocks[seat.block]
    if own.data_ptr() == job.result.data_ptr():
        return
    if before and job.operation == "all_gather":
        own.copy_(job.result)
    elif not before and job.operation == "reduce_scatter":
        job.result.copy_(own)
