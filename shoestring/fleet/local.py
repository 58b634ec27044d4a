"""Workers and coordinator as processes of this machine, over a private Unix socket (source: ours)."""

from __future__ import annotations

import errno
import json
import os
import selectors
import shutil
import socket
import tempfile
from pathlib import Path

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import FleetError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.channel import UnixChannel, WorkerContext
from shoestring.fleet.frames import FrameReader, pack_frame
from shoestring.fleet.launch import Launch, Outcome, build_coordinator, load_entry
from shoestring.fleet.names import number_of
from shoestring.fleet.processes import Child, fork_child, raise_file_limit, spawn_child
from shoestring.fleet.server import LastWords, run_coordinator
from shoestring.fleet.supervisor import CoordinatorEnd, Interrupts, OnStatus, Supervisor

_BACKLOG = 1024
_READ_BYTES = 262144


def run_local(launch: Launch, clock: Clock, on_status: OnStatus, interrupts: Interrupts) -> Outcome:
    """Run a fleet of local processes until its outcome; no process is left when this returns.

    The caller holds the run lock. Where the device is `cpu` it must not have started threads:
    workers are forked.

    Raises:
        FleetError: processes or the socket could not be made.
    """
    host = LocalHost(launch, clock)
    return Supervisor(launch.fleet.members, host, clock, on_status, interrupts).run()


def bind_private(path: Path) -> socket.socket:
    """A listening Unix socket that only this user may connect to.

    Raises:
        FleetError: the path is taken, too long, or cannot be written.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise FleetError(
                f"the socket {path} is already taken", "stop who uses it, or give another directory (TMPDIR)"
            ) from error
        raise FleetError(
            f"cannot listen on the socket {path}: {error}", "set TMPDIR to a short, writable path"
        ) from error
    return listener


class LocalHost:
    """Forks (or spawns) workers and the coordinator, and keeps the socket between them.

    Args:
        launch: the run.
        clock: given to the coordinator and the workers.
        socket_path: where to listen; empty: a fresh directory that only this user may enter.

    Raises:
        FleetError: the socket could not be made.
    """

    def __init__(self, launch: Launch, clock: Clock, socket_path: Path | None = None) -> None:
        self._launch = launch
        self._clock = clock
        self._entry = load_entry(launch.entry)
        self._own_dir = Path(tempfile.mkdtemp(prefix="shoestring-")) if socket_path is None else None
        self.socket_path = socket_path or Path(str(self._own_dir)) / "coordinator.sock"
        self._listener = bind_private(self.socket_path)
        self._logs = launch.run_dir / "logs"
        self._coordinator: Child | None = None
        self._workers: dict[tuple[str, int], Child] = {}
        self._line: socket.socket | None = None
        self._reader = FrameReader()
        self._spare_frames: list[bytes] = []
        raise_file_limit()

    # --- the coordinator ---------------------------------------------------------------------

    @property
    def coordinator_pid(self) -> int:
        """The coordinator's process id; 0 while there is none."""
        return self._coordinator.pid if self._coordinator is not None else 0

    def start_coordinator(self, first: bool) -> None:
        """Fork it; it inherits the listening socket, where callers may be waiting already."""

        def body(words_fd: int) -> int:
            return run_coordinator(
                lambda: build_coordinator(self._launch, self._clock, resumed=first),
                self._listener,
                self._clock,
                words_fd,
            )

        self._coordinator = fork_child(body, self._logs / "coordinator.log", (self._listener.fileno(),))

    def coordinator_end(self) -> CoordinatorEnd | None:
        """How it ended, once."""
        ended = self._coordinator.poll() if self._coordinator is not None else None
        if ended is None:
            return None
        self._coordinator = None
        self._hang_up()
        try:
            words = msgspec.json.decode(ended.words, type=LastWords)
        except msgspec.DecodeError:  # a traceback or a signal, not the words of an error it knew
            return CoordinatorEnd(ended.words, f"look into {self._logs / 'coordinator.log'}", fatal=False)
        return CoordinatorEnd(words.what, words.todo, words.fatal)

    def kill_coordinator(self) -> None:
        """SIGKILL."""
        if self._coordinator is not None:
            self._coordinator.kill()

    def send(self, tick: m.SupervisorTick) -> None:
        """Send over our own connection; it is made when missing."""
        try:
            if self._line is None:
                line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._line, self._reader = line, FrameReader()
                self._spare_frames.clear()
                line.settimeout(1.0)
                line.connect(str(self.socket_path))
            self._line.sendall(pack_frame(m.encode(tick)))
        except OSError as error:
            self._hang_up()
            raise TransportError(f"the coordinator was not reached: {error}", "send it again") from error

    def receive(self, wait_s: float) -> m.SupervisorOrders | None:
        """The answer to what was sent last."""
        if self._line is None:
            raise TransportError("the connection to the coordinator is closed", "send it again")
        try:
            if not self._wait(self._line, wait_s, workers=False):
                return None
            data = self._line.recv(_READ_BYTES)
            if not data:
                raise OSError("the coordinator closed the connection")
            self._spare_frames += self._reader.feed(data)
            if not self._spare_frames:
                return None
            reply = m.decode_reply(self._spare_frames.pop())
        except (OSError, TransportError, msgspec.DecodeError) as error:
            self._hang_up()
            raise TransportError(f"no answer from the coordinator: {error}", "send it again") from error
        if not isinstance(reply, m.SupervisorOrders):
            raise FleetError(
                f"the coordinator answered {type(reply).__name__}",
                "report this; it is a mistake in shoestring",
            )
        return reply

    # --- workers -------------------------------------------------------------------------------

    def spawn(self, name: str, incarnation: int) -> None:
        """Fork on a CPU; a fresh interpreter where CUDA is used."""
        log = self._logs / f"{name}.log"
        if self._launch.device == "cpu":
            child = fork_child(lambda _: self._work(name, incarnation), log)
        else:
            child = spawn_child(
                ["-m", "shoestring.fleet.spawned", self._spawn_file(name, incarnation)],
                log,
                {"OMP_NUM_THREADS": str(self._launch.threads)},
            )
        self._workers[name, incarnation] = child

    def kill(self, name: str, incarnation: int) -> None:
        """SIGKILL, if it runs."""
        if (name, incarnation) in self._workers:
            self._workers[name, incarnation].kill()

    def alive(self) -> tuple[tuple[str, int], ...]:
        """Workers whose end was not seen yet."""
        return tuple(self._workers)

    def worker_pid(self, name: str) -> int:
        """The process id of the newest process of a worker; 0 if none runs."""
        return max(((i, child.pid) for (n, i), child in self._workers.items() if n == name), default=(0, 0))[
            1
        ]

    def unplaced(self) -> tuple[tuple[str, int], ...]:
        """Nobody: this machine has room."""
        return ()

    def notices(self) -> tuple[tuple[str, str], ...]:
        """Nobody: a local worker gets its SIGTERM itself."""
        return ()

    def reap(self) -> tuple[m.Exit, ...]:
        """Workers that ended since the last call."""
        exits = []
        for (name, incarnation), child in list(self._workers.items()):
            if (ended := child.poll()) is not None:
                del self._workers[name, incarnation]
                exits.append(m.Exit(name, incarnation, ended.code, ended.words))
        return tuple(exits)

    def pause(self, wait_s: float) -> None:
        """Wait until a child ends or the time is over."""
        self._wait(None, wait_s, workers=True)

    def close(self) -> None:
        """Kill the workers, end the coordinator in order (what it holds is durable then), clean up."""
        for child in self._workers.values():
            child.kill()
        while self._workers:
            self._wait(None, 1.0, workers=True)
            self.reap()
        self._end_coordinator()
        self._hang_up()
        self._listener.close()
        self.socket_path.unlink(missing_ok=True)
        if self._own_dir is not None:
            shutil.rmtree(self._own_dir, ignore_errors=True)

    # --- inside ----------------------------------------------------------------------------------

    def _work(self, name: str, incarnation: int) -> int:
        os.environ["OMP_NUM_THREADS"] = str(self._launch.threads)
        self._entry(worker_context(self._launch, self.socket_path, self._clock, name, incarnation))
        return 0

    def _spawn_file(self, name: str, incarnation: int) -> str:
        """What a fresh interpreter needs, as a file: a command line is too short and seen by all users."""
        path = self.socket_path.parent / f"{name}.{incarnation}.json"
        launch = self._launch
        path.write_text(
            json.dumps(
                {
                    "socket": str(self.socket_path),
                    "name": name,
                    "incarnation": incarnation,
                    "run_dir": str(launch.run_dir),
                    "members": launch.fleet.members.model_dump(mode="json"),
                    "entry": launch.entry,
                    "payload": launch.payload.hex(),
                    "device": launch.device,
                    "threads": launch.threads,
                }
            )
        )
        return str(path)

    def _end_coordinator(self, patience_s: float = 5.0) -> None:
        if self._coordinator is None:
            return
        self._coordinator.terminate()
        if not _ended(self._coordinator, patience_s):
            self._coordinator.kill()
            _ended(self._coordinator, patience_s)
        self._coordinator.poll()
        self._coordinator = None

    def _wait(self, line: socket.socket | None, wait_s: float, workers: bool) -> bool:
        """Until the coordinator or (if `workers`) a worker ends, or `line` can be read: then True."""
        with selectors.DefaultSelector() as selector:
            if line is not None:
                selector.register(line, selectors.EVENT_READ)
            for child in [self._coordinator, *(self._workers.values() if workers else ())]:
                if child is not None:
                    selector.register(child.pidfd, selectors.EVENT_READ)
            return any(key.fileobj is line for key, _ in selector.select(wait_s))

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def worker_context(
    launch: Launch, socket_path: Path, clock: Clock, name: str, incarnation: int
) -> WorkerContext:
    """What a worker process of this machine is given."""
    return WorkerContext(
        name=name,
        incarnation=incarnation,
        open_channel=lambda: UnixChannel(socket_path),
        clock=clock,
        config=launch.fleet.members,
        run_dir=launch.run_dir,
        payload=launch.payload,
        device=launch.device,
        device_index=number_of(name),
        threads=launch.threads,
    )


def _ended(child: Child, patience_s: float) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(child.pidfd, selectors.EVENT_READ)
        return bool(selector.select(patience_s))
