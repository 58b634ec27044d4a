"""Workers and coordinator as Ray actors, on one host or several (source: ours).

The coordinator is an actor on the driver's host, where the run's directory is; Ray restarts it
and it comes back from the store. Workers are actors spread over the hosts. The driver executes
the same orders as the local supervisor. Checkpoints are written by all hosts: on more than one,
the run's directory must be on a shared file system.

Messages cross as the same msgpack bytes as on a socket. Ray pickles what the driver itself hands
to its own actors; nothing else is unpickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import traceback
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.errors import FleetError, ShoestringError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.channel import CALL_TIMEOUT_S, WorkerContext
from shoestring.fleet.launch import Launch, Outcome, build_coordinator, load_entry
from shoestring.fleet.server import CALM_TICK_S, TICK_S
from shoestring.fleet.supervisor import CoordinatorEnd, Interrupts, OnStatus, Supervisor

REPORT_S = 30.0
COORDINATOR_RESTARTS = 20
DEAD_CODE = -9
LOOK_S = 1.0


def run_ray(
    launch: Launch, clock: Clock, on_status: OnStatus, interrupts: Interrupts, address: str | None = None
) -> Outcome:
    """Run a fleet on a Ray cluster until its outcome; the caller holds the run lock.

    Args:
        address: the cluster; None: start one on this host, for this run only.

    Raises:
        FleetError: Ray or its actors could not be started.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise FleetError(
            f"cannot start or reach Ray: {error}", "check the address, or start one with `ray start --head`"
        ) from error
    try:
        return Supervisor(launch.fleet.members, RayHost(launch, clock), clock, on_status, interrupts).run()
    finally:
        ray.shutdown()


class RayChannel:
    """Calls the coordinator's actor.

    Args:
        coordinator: the actor's handle.
        timeout_s: silence that long is an error.
    """

    def __init__(self, coordinator: Any, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._coordinator = coordinator
        self._timeout_s = timeout_s

    def call(self, request: m.Request) -> m.Reply:
        """One request, one answer.

        Raises:
            TransportError: the actor is away, or nothing came within the time-out.
        """
        try:
            data = ray.get(self._coordinator.handle.remote(m.encode(request)), timeout=self._timeout_s)
        except (RayActorError, GetTimeoutError) as error:
            raise TransportError(
                f"{type(request).__name__} got no answer: {error}", "send it again"
            ) from error
        return m.decode_reply(data)

    def close(self) -> None:
        """The handle needs no closing."""


class CoordinatorActor:
    """The coordinator in an actor: what arrives while a commit runs shares the next one."""

    def __init__(self, launch: Launch, first: bool) -> None:
        self._clock = SystemClock()
        self._broken: ShoestringError | None = None
        self._waiting: list[tuple[m.Request, asyncio.Future[bytes]]] = []
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        # Ray runs this again with the same arguments when it restarts the actor.
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        try:
            self._coordinator, self._record = build_coordinator(
                launch, self._clock, resumed=first and not restarted
            )
        except ShoestringError as error:
            self._broken = error

    async def handle(self, data: bytes) -> bytes:
        """Request bytes to reply bytes; the answer leaves after the commit."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())
        if self._broken is not None:
            return m.encode(m.Refused(self._broken.what, self._broken.todo))
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((m.decode_request(data), future))
        self._arrived.set()
        return await future

    async def about(self) -> int:
        """The process id of this actor."""
        return os.getpid()

    async def _serve(self) -> None:
        next_tick_s = self._clock.now()
        while self._broken is None:
            with contextlib.suppress(TimeoutError):  # then a tick is due
                await asyncio.wait_for(self._arrived.wait(), max(0.0, next_tick_s - self._clock.now()))
            self._arrived.clear()
            waiting, self._waiting = self._waiting, []
            now = self._clock.now()
            replies = [(self._coordinator.handle(now, request), future) for request, future in waiting]
            if now >= next_tick_s:
                self._coordinator.tick(now)
                next_tick_s = now + CALM_TICK_S
            if not self._coordinator.calm:
                next_tick_s = min(next_tick_s, now + TICK_S)
            try:
                self._coordinator.flush()
            except ShoestringError as error:
                self._broken = error
                replies = [(m.Refused(error.what, error.todo), future) for _, future in replies]
            for reply, future in replies:
                future.set_result(m.encode(reply))


class WorkerActor:
    """A worker process; `work` returns when the worker's main does."""

    def about(self) -> tuple[int, str]:
        """(process id, node id)."""
        return os.getpid(), str(ray.get_runtime_context().get_node_id())

    def work(self, launch: Launch, coordinator: Any, name: str, incarnation: int) -> None:
        """Run the worker's main."""
        load_entry(launch.entry)(
            WorkerContext(
                name=name,
                incarnation=incarnation,
                open_channel=lambda: RayChannel(coordinator),
                clock=SystemClock(),
                config=launch.fleet.members,
                run_dir=launch.run_dir,
                payload=launch.payload,
                host=ray.util.get_node_ip_address(),
                device=launch.device,
                threads=launch.threads,
            )
        )


def _kill_pid(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@dataclass
class _Worker:
    """A worker actor, the result of its `work`, and its process once known."""

    actor: Any
    done: Any
    about: Any
    node: str = ""


class RayHost:
    """Starts and ends actors.

    Args:
        launch: the run.
        clock: the driver's time.
    """

    def __init__(self, launch: Launch, clock: Clock) -> None:
        self._launch = launch
        self._clock = clock
        self._coordinator: Any = None
        self._refused: CoordinatorEnd | None = None
        self._pending: Any = None
        self._workers: dict[tuple[str, int], _Worker] = {}
        self._here = ray.get_runtime_context().get_node_id()
        self._draining: frozenset[str] = frozenset()
        self._next_look_s = 0.0

    # --- the coordinator ---------------------------------------------------------------------

    def coordinator_pid(self) -> int:
        """The process id of the coordinator's actor."""
        return int(ray.get(self._coordinator.about.remote(), timeout=REPORT_S))

    def start_coordinator(self, first: bool) -> None:
        """Make the actor on this host; Ray restarts it when its process dies."""
        here = NodeAffinitySchedulingStrategy(node_id=self._here, soft=False)
        actor = ray.remote(CoordinatorActor).options(
            num_cpus=0, max_restarts=COORDINATOR_RESTARTS, scheduling_strategy=here
        )
        self._coordinator = actor.remote(self._launch, first)

    def coordinator_end(self) -> CoordinatorEnd | None:
        """What it refused with; its process is Ray's to restart."""
        ended, self._refused = self._refused, None
        return ended

    def kill_coordinator(self) -> None:
        """End its process; Ray restarts it."""
        ray.kill(self._coordinator, no_restart=False)

    def send(self, tick: m.SupervisorTick) -> None:
        """Start the call."""
        self._pending = self._coordinator.handle.remote(m.encode(tick))

    def receive(self, wait_s: float) -> m.SupervisorOrders | None:
        """The answer to what was sent last."""
        try:
            reply = m.decode_reply(ray.get(self._pending, timeout=wait_s))
        except GetTimeoutError:
            return None
        except RayActorError as error:
            self._note_death()
            raise TransportError(f"the coordinator's actor is away: {error}", "send it again") from error
        if isinstance(reply, m.Refused):
            self._refused = CoordinatorEnd(reply.what, reply.todo, fatal=True)
            raise TransportError(reply.what, reply.todo)
        if not isinstance(reply, m.SupervisorOrders):
            raise FleetError(
                f"the coordinator answered {type(reply).__name__}",
                "report this; it is a mistake in shoestring",
            )
        return reply

    # --- workers -------------------------------------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Make an actor, spread over the hosts, and let it work."""
        # No environment of its own: that would forgo the processes that Ray keeps ready.
        launch = self._launch
        cpus = launch.fleet.members.cpus
        options = {"num_cpus": cpus, "max_restarts": 0, "scheduling_strategy": "SPREAD", "max_concurrency": 2}
        if launch.device == "cuda":
            options["num_gpus"] = 1
        actor = ray.remote(WorkerActor).options(**options).remote()
        done = actor.work.remote(launch, self._coordinator, name, incarnation)
        self._workers[name, incarnation] = _Worker(actor, done, actor.about.remote())

    def kill(self, name: str, incarnation: int) -> None:
        """End the actor, and its process from its own host: a stopped process cannot end itself."""
        if (name, incarnation) not in self._workers:
            return
        worker = self._workers[name, incarnation]
        ray.kill(worker.actor, no_restart=True)
        known, _ = ray.wait([worker.about], timeout=0)
        if known:
            try:
                pid, node = ray.get(worker.about)
            except RayError:
                return  # it never came up
            there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            ray.remote(_kill_pid).options(num_cpus=0, scheduling_strategy=there).remote(pid)

    def worker_pid(self, name: str) -> int:
        """The process id of the newest process of a worker; 0 if none runs."""
        newest = max((key for key in self._workers if key[0] == name), default=None)
        return int(ray.get(self._workers[newest].about, timeout=REPORT_S)[0]) if newest else 0

    def alive(self) -> tuple[tuple[str, int], ...]:
        """Workers whose end was not seen yet."""
        return tuple(self._workers)

    def unplaced(self) -> tuple[tuple[str, int], ...]:
        """Workers that wait until a host has as many cores free as they need."""
        if not self._launch.fleet.members.cpus:
            return ()
        return tuple(key for key, worker in self._workers.items() if not self._node_of(worker))

    def notices(self) -> tuple[tuple[str, str], ...]:
        """Workers on hosts that are to be drained (`ray drain-node`, or a cluster manager's own notice)."""
        now = self._clock.now()
        if now >= self._next_look_s:
            self._next_look_s = now + LOOK_S
            # The only place where Ray tells it; its own trainer reads it there, too.
            self._draining = frozenset(ray._private.state.state.get_draining_nodes() or ())
        if not self._draining:
            return ()
        return tuple(
            (name, f"its host {node[:8]} is to be drained")
            for (name, _), worker in self._workers.items()
            if (node := self._node_of(worker)) in self._draining
        )

    def node_of(self, name: str) -> str:
        """The host of the newest process of a worker; empty while it has none."""
        newest = max((key for key in self._workers if key[0] == name), default=None)
        return self._node_of(self._workers[newest]) if newest else ""

    def _node_of(self, worker: _Worker) -> str:
        """The worker's host; empty while it has none."""
        if not worker.node:
            known, _ = ray.wait([worker.about], timeout=0)
            if known:
                try:
                    _, worker.node = ray.get(worker.about)
                except RayError:
                    return ""  # it never came up: `reap` tells
        return worker.node

    def reap(self) -> tuple[m.Exit, ...]:
        """Workers whose `work` has returned or failed."""
        exits = []
        for (name, incarnation), worker in list(self._workers.items()):
            ended, _ = ray.wait([worker.done], timeout=0)
            if ended:
                del self._workers[name, incarnation]
                code, words = _how_it_ended(worker.done)
                exits.append(m.Exit(name, incarnation, code, words))
                ray.kill(worker.actor, no_restart=True)
        return tuple(exits)

    def pause(self, wait_s: float) -> None:
        """Wait until a worker ends or the time is over."""
        if self._workers:
            ray.wait([worker.done for worker in self._workers.values()], timeout=wait_s)
        else:
            self._clock.sleep(wait_s)

    def close(self) -> None:
        """Kill what is left."""
        for name, incarnation in list(self._workers):
            self.kill(name, incarnation)
        self._workers.clear()
        if self._coordinator is not None:
            ray.kill(self._coordinator, no_restart=True)

    def _note_death(self) -> None:
        self._pending = None


def _how_it_ended(done: Any) -> tuple[int, str]:
    try:
        ray.get(done)
    except RayTaskError as error:
        return 1, str(error.cause) if isinstance(error.cause, ShoestringError) else str(error)
    except RayActorError as error:
        return DEAD_CODE, f"{error}\nits actor died"
    except RayError:
        return 1, traceback.format_exc()
    return 0, "ended without an error"
