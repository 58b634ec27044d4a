"""Ring collectives for groups fast inside and slow between (source: ours, after PaRO, arXiv 2310.06003)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import torch
import torch.distributed as dist

from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes
from shoestring.cluster.strategies import Layout
from shoestring.parallel.group import PeerLostError
from shoestring.parallel.rings.choice import Choice, Method, Operation, Request, Scope, choose
from shoestring.parallel.rings.connection import all_on_one_host
from shoestring.parallel.rings.schedule import block_sizes
from shoestring.parallel.rings.seats import SCOPES, Seat
from shoestring.parallel.rings.work import Job, Runner, Told, cuda_runner, gloo_runner

Order = Literal["rank", "nested"]
IN_FLIGHT = 4
Watch = Callable[[Request], Told]


class Pending:
    """A collective under way.

    Attributes:
        choice: the method it runs by, and why.
    """

    def __init__(self, choice: Choice, future: Future[Any] | None, what: str = "") -> None:
        self.choice = choice
        self._future = future
        self._what = what

    def done(self) -> bool:
        """Whether `wait` would return (or raise) at once; on CUDA: whether it has been enqueued."""
        return self._future is None or self._future.done()

    def wait(self) -> None:
        """Until the result is there. On CUDA the current stream waits, not the caller.

        Raises:
            PeerLostError: a rank died, or was silent for the time-out. What the tensors hold is then
                undefined, and every later collective of these rings fails too: close them and form new ones.
        """
        if self._future is None:
            return
        try:
            event = self._future.result()
        except PeerLostError as error:
            raise PeerLostError(f"{self._what}: {error}") from error
        if event is not None:
            torch.cuda.current_stream().wait_event(event)


class Rings:
    """Collectives over all ranks (`world`), inside this rank's group (`group`), and between the ranks that
    have its place in the other groups (`peers`). All calls return at once.

    Collectives of one scope run in the order issued, which must be the same on all ranks of the scope; those
    of different scopes run at the same time, on separate connections. Tensors must be contiguous and be left
    alone until `wait` has returned.

    A tensor of N elements is cut into d blocks as by torch.tensor_split, d the ranks of the scope. Each
    block is summed along one path and then copied, so results are bit-equal on all ranks; `overlap` and
    `sequential` are bit-equal to one another. Sums are made in the tensor's dtype: bf16 rounds once per hop.

    Args:
        layout: the groups, or nested lists of ranks.
        rank, store: the default process group's where not given. A store keeps the addresses of what was
            formed on it, so each Rings on one store needs a `name` of its own.
        device: decides the backend: NCCL for CUDA, gloo for the CPU.
        timeout_s: longest silence of a peer.
        chunk_bytes: 0: by the size of the blocks.
        in_flight: chunks that are awaited at the same time.
        order: `rank`: block i of `world` belongs to rank i; `nested`: to the rank whose Layout.shard("G") is
            i, so that shards of groups are cut into shards of ranks. `group` and `peers` go by position.
        scopes: which to connect; a scope of one rank needs no connection.
        choose: the rule behind method "auto".
        watch: called as a collective is issued; what it returns is told ("began", "ended") from the thread
            that carries it out. Must be quick and may not raise. Not for CUDA, nor for scopes of one rank.

    Raises:
        ConfigError: no rank or store is known.
        PeerLostError: the ranks did not find each other within FORM_TIMEOUT_S (or `timeout_s` if less).
    """

    def __init__(
        self,
        layout: Layout | Sequence[Sequence[int]],
        rank: int | None = None,
        store: dist.Store | None = None,
        device: torch.device | str = "cpu",
        timeout_s: float = 60.0,
        chunk_bytes: int = 0,
        in_flight: int = IN_FLIGHT,
        order: Order = "rank",
        scopes: Sequence[Scope] = SCOPES,
        choose: Callable[[Request], Choice] = choose,
        name: str = "rings",
        watch: Watch | None = None,
    ) -> None:
        self.layout = layout if isinstance(layout, Layout) else Layout(tuple(map(tuple, layout)))
        if (rank is None or store is None) and not dist.is_initialized():
            raise ConfigError(
                "rings need a rank and a store, and there is no default process group",
                "pass rank= and store=, or call torch.distributed.init_process_group first",
            )
        self.rank = dist.get_rank() if rank is None else rank
        store = dist.distributed_c10d._get_default_store() if store is None else store
        self.device = torch.device(device)
        self._choose = choose
        self._watch = watch
        self._error: BaseException | None = None
        self._closed = False
        self._lock = threading.Lock()
        seats = [Seat.of(scope, self.layout, self.rank, order) for scope in scopes]
        self._hosts_shared = all_on_one_host(store, f"{name}/hosts", self.rank, self.layout.size, timeout_s)
        make = cuda_runner if self.device.type == "cuda" else gloo_runner
        self._runners: dict[Scope, Runner] = {}
        try:
            for seat in seats:
                self._runners[seat.scope] = make(
                    store, name, seat, self.device, timeout_s, chunk_bytes, in_flight, self._fail
                )
        except BaseException as error:
            self._fail(error)
            self.close()
            raise
        for runner in self._runners.values():
            runner.watch()

    def all_gather(
        self,
        output: torch.Tensor,
        shard: torch.Tensor,
        scope: Scope = "world",
        method: Method | Choice = "auto",
    ) -> Pending:
        """Every rank's `shard` into `output` [N]; `shard` has this rank's block's size, and may be that very
        view.

        Raises:
            ConfigError: sizes, dtypes or places do not fit, or the scope is not connected.
            PeerLostError: the rings have failed before, or are closed.
        """
        return self._submit("all_gather", output, shard, scope, method)

    def reduce_scatter(
        self,
        shard: torch.Tensor,
        input: torch.Tensor,
        scope: Scope = "world",
        method: Method | Choice = "auto",
    ) -> Pending:
        """The sum over ranks of this rank's block of `input` [N] into `shard`, which may be that very view.

        `input` is used as scratch: its contents are undefined afterwards.

        Raises:
            ConfigError, PeerLostError: as `all_gather`.
        """
        return self._submit("reduce_scatter", input, shard, scope, method)

    def all_reduce(
        self, tensor: torch.Tensor, scope: Scope = "world", method: Method | Choice = "auto"
    ) -> Pending:
        """The sum over ranks of `tensor`, in place.

        Raises:
            ConfigError, PeerLostError: as `all_gather`.
        """
        return self._submit("all_reduce", tensor, None, scope, method)

    def block(self, tensor: torch.Tensor, scope: Scope = "world") -> torch.Tensor:
        """This rank's block of a contiguous tensor, as a flat view.

        Raises:
            ConfigError: the scope is not connected.
        """
        runner = self._runner(scope)
        blocks: tuple[torch.Tensor, ...] = tensor.view(-1).split(
            block_sizes(tensor.numel(), runner.seat.size)
        )
        return blocks[runner.seat.block]

    def close(self) -> None:
        """End threads and connections. What is still under way fails. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if any(runner.busy for runner in self._runners.values()):
            self._fail(PeerLostError("the rings were closed while a collective was under way"))
        for runner in self._runners.values():
            runner.close()

    def __enter__(self) -> Rings:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runner(self, scope: Scope) -> Runner:
        if scope not in self._runners:
            raise ConfigError(
                f"the scope {scope!r} is not connected",
                f"take one of {', '.join(self._runners)}, or form rings with it",
            )
        return self._runners[scope]

    def _submit(
        self,
        operation: Operation,
        whole: torch.Tensor,
        shard: torch.Tensor | None,
        scope: Scope,
        method: Method | Choice,
    ) -> Pending:
        runner = self._runner(scope)
        _check(operation, whole, shard, runner.seat)
        request = Request(
            operation, scope, whole.numel() * whole.element_size(), self.layout, self._hosts_shared
        )
        if isinstance(method, Choice):
            choice = method
        elif method == "auto":
            choice = self._choose(request)
        else:
            choice = Choice(method, "asked for")
        what = f"{operation} of {format_bytes(request.size_bytes)} over {scope} by {choice.method}"
        with self._lock:
            if self._error is not None or self._closed:
                raise PeerLostError(f"{what}: {self._error or 'the rings are closed'}")
        blocks = whole.detach().view(-1).split(block_sizes(whole.numel(), runner.seat.size))
        result = shard.detach().view(-1) if shard is not None else None
        told = self._watch(request) if self._watch is not None else None
        future = runner.submit(Job(operation, choice.method, what, whole, blocks, result, request, told))
        return Pending(choice, future, what)

    def _fail(self, error: BaseException) -> BaseException:
        """Break everything, lest a thread or a peer wait for what will not come; gives the first error."""
        with self._lock:
            if self._error is not None:
                return self._error
            self._error = error
        for runner in self._runners.values():
            runner.abort(error)
        return error


def _check(operation: Operation, whole: torch.Tensor, shard: torch.Tensor | None, seat: Seat) -> None:
    tensors = [whole] if shard is None else [whole, shard]
    if any(not tensor.is_contiguous() for tensor in tensors):
        raise ConfigError(f"{operation} needs contiguous tensors", "pass a contiguous copy")
    if shard is None:
        return
    expected = block_sizes(whole.numel(), seat.size)[seat.block]
    if shard.numel() != expected or shard.dtype != whole.dtype or shard.device != whole.device:
        raise ConfigError(
            f"{operation}: the shard has {shard.numel()} elements of {shard.dtype} on {shard.device}; block "
            f"{seat.block} of {seat.size} of the other tensor has {expected} of {whole.dtype} on "
            f"{whole.device}",
            "take `Rings.block` of the whole tensor, or a tensor like it",
        )
