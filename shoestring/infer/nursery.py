"""A small process that forks a worker's children (source: ours; the idea is that of Python's forkserver).

A worker has threads, and may not fork. The nursery has none: it is started before the worker's first thread,
imports once what stages need, and then makes a child in milliseconds. Children die with it, and it dies with
the worker, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

import shoestring
from shoestring.base.errors import DataError, FleetError
from shoestring.data.row_index import RowIndex
from shoestring.fleet.processes import Child, fork_child
from shoestring.infer import child as children
from shoestring.infer.births import STAGE, Birth, Born, End, EndOf, Settings
from shoestring.infer.preload import preload
from shoestring.infer.wire import InferPayload

Live = Callable[[Birth, Settings, RowIndex | None, socket.socket], None]
"""What a child does until its socket is closed."""
Answer = TypeVar("Answer", Born, End)

_MESSAGE_BYTES = 1 << 16
_WORDS = 8000
"""Letters of last words that are passed on: both kinds of message stay well within one packet."""
_KEPT_ENDS = 1000
_PATIENCE_S = 300.0
"""For one child: the first of a stage waits for imports from what may be a slow disk."""
_CLOSE_S = 10.0


@dataclass
class Kid:
    """A child of the nursery, as the engine has it.

    Attributes:
        pid: its process id.
        pidfd: readable once it has ended.
        socket: to it; blocking.
    """

    pid: int
    pidfd: int
    socket: socket.socket

    def kill(self) -> None:
        """SIGKILL; one that has ended already ignores it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Let go of the descriptors: a child whose socket is closed leaves."""
        self.socket.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Nursery:
    """The worker's side. Not for two threads at once.

    Attributes:
        pid, pidfd: of the nursery. The pidfd is readable once it has ended; all children end with it.
    """

    def __init__(self, pid: int, pidfd: int, end: socket.socket, reap: Callable[[], object]) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._end = end
        self._reap = reap
        end.settimeout(_PATIENCE_S)

    @classmethod
    def start(
        cls,
        payload: InferPayload,
        folder: Path,
        run_dir: Path,
        worker: str,
        spawn: bool = False,
        live: Live | None = None,
    ) -> Nursery:
        """Fork it, or (`spawn`) start a fresh interpreter.

        Args:
            payload: of the worker.
            folder: of its segments.
            run_dir: logs go into `logs/` of it: `WORKER-ROLE-NUMBER.log`.
            worker: its name.
            spawn: where this process has threads or has touched a device: under Ray, with CUDA.
            live: what children do; None: `child.live`. For tests; not with `spawn`.

        Raises:
            FleetError: the process could not be made.
        """
        settings = Settings(payload, str(folder), str(run_dir / "logs"), worker, list(sys.path))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = run_dir / "logs" / f"{worker}-nursery.log"
        try:
            if spawn:
                pid, pidfd, reap = _spawned(settings, theirs, log)
            else:
                born = fork_child(lambda _: run(settings, theirs, live), log, (theirs.fileno(),))
                pid, pidfd, reap = born.pid, born.pidfd, born.poll
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(pid, pidfd, ours, reap)

    def child(
        self, role: str, number: int, device: str = "cpu", device_share: float = 1.0, threads: int = 1
    ) -> Kid:
        """A new child; its `Up` comes through its socket.

        The first child of a stage may take a second or two: imports.

        Raises:
            FleetError: the nursery is gone, or the machine has no room for a process.
        """
        born, fds = self._ask(Birth(role, number, device, device_share, threads), Born)
        if born.pid == 0:
            raise FleetError(f"no process for {role}: {born.why}", "free memory or processes")
        return Kid(born.pid, fds[1], socket.socket(fileno=fds[0]))

    def end_of(self, pid: int) -> End:
        """How a child ended; to be asked once its pidfd or its socket said that it did. None: it still runs.

        Raises:
            FleetError: the nursery is gone.
        """
        return self._ask(EndOf(pid), End)[0]

    def close(self) -> None:
        """End the nursery and all children, at once; nobody is left when this returns."""
        if self.pidfd < 0:
            return
        self._end.close()  # it sees that, and ends the children and itself
        with selectors.DefaultSelector() as selector:
            selector.register(self.pidfd, selectors.EVENT_READ)
            if not selector.select(_CLOSE_S):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
                selector.select()
        self.pidfd = -1
        self._reap()

    def _ask(self, request: Birth | EndOf, kind: type[Answer]) -> tuple[Answer, list[int]]:
        try:
            self._end.send(msgspec.msgpack.encode(request))
            data, fds, _, _ = socket.recv_fds(self._end, _MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise _gone(str(error)) from error
        if not data:
            raise _gone("it has ended")
        return msgspec.msgpack.decode(data, type=kind), fds


def run(settings: Settings, end: socket.socket, live: Live | None) -> int:
    """The nursery's life, until its worker hangs up; its exit code.

    Args:
        end: its end of the socket pair.
        live: what children do; None: `child.live`.
    """
    nursery = _Inside(settings, end, live or children.live)
    with contextlib.suppress(ConnectionError):  # the worker was killed
        nursery.serve()
    nursery.end_all()
    return 0


class _Inside:
    """The nursery's side."""

    def __init__(self, settings: Settings, end: socket.socket, live: Live) -> None:
        self._settings = settings
        self._end = end
        self._live = live
        self._index: RowIndex | None = None
        self._prepared: set[bool] = set()
        self._kids: dict[int, Child] = {}
        self._ends: dict[int, End] = {}
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Answer until nobody asks any more."""
        self._selector.register(self._end, selectors.EVENT_READ)
        requests = msgspec.msgpack.Decoder(Birth | EndOf)
        while True:
            events = self._selector.select()
            for key, _ in events:
                if key.data is not None:
                    self._bury(key.data)
            if not any(key.data is None for key, _ in events):
                continue
            data = self._end.recv(_MESSAGE_BYTES)
            if not data:
                return
            request = requests.decode(data)
            if isinstance(request, Birth):
                self._bear(request)
            else:
                self._end.send(msgspec.msgpack.encode(self._told(request.pid)))

    def end_all(self) -> None:
        """Kill and reap every child."""
        for kid in self._kids.values():
            kid.kill()
        while self._kids:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._bury(key.data)
                else:
                    self._selector.unregister(self._end)

    def _bear(self, birth: Birth) -> None:
        self._prepare(birth.role.startswith(STAGE))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log = Path(self._settings.logs) / f"{self._settings.worker}-{birth.log_name}.log"

        def body(_: int) -> int:
            self._live(birth, self._settings, self._index, theirs)
            return 0

        with ours, theirs:
            try:
                kid = fork_child(body, log, (theirs.fileno(),))
            except FleetError as error:
                self._end.send(msgspec.msgpack.encode(Born(0, error.what)))
                return
            self._kids[kid.pid] = kid
            self._selector.register(kid.pidfd, selectors.EVENT_READ, kid)
            socket.send_fds(self._end, [msgspec.msgpack.encode(Born(kid.pid))], [ours.fileno(), kid.pidfd])

    def _prepare(self, stage: bool) -> None:
        """What children of this sort have in common, once: they share its memory."""
        if stage in self._prepared:
            return
        self._prepared.add(stage)
        if stage:
            preload(self._settings)
        else:
            try:
                self._index = RowIndex.load(Path(self._settings.payload.index))
            except DataError as error:  # each child meets it again, and tells it to who asks
                print(error, file=sys.stderr)
        # A child that looks for garbage (after each failure) would copy and walk through all of this.
        gc.freeze()

    def _told(self, pid: int) -> End:
        if pid in self._kids:
            with selectors.DefaultSelector() as one:
                one.register(self._kids[pid].pidfd, selectors.EVENT_READ)
                # A socket closes a moment before its process has ended.
                if not one.select(0.2):
                    return End(None)
            self._bury(self._kids[pid])
        return self._ends[pid] if pid in self._ends else End(None, "no child of this nursery")

    def _bury(self, kid: Child) -> None:
        if self._kids.pop(kid.pid, None) is None:
            return
        self._selector.unregister(kid.pidfd)
        # Processes that it has started itself: not reaped yet, its number is still nobody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(kid.pid, signal.SIGKILL)
        ended = kid.poll()
        if ended is not None:
            self._ends[kid.pid] = End(ended.code, ended.words[-_WORDS:])
        while len(self._ends) > _KEPT_ENDS:
            del self._ends[next(iter(self._ends))]


def _spawned(settings: Settings, end: socket.socket, log: Path) -> tuple[int, int, Callable[[], object]]:
    """A nursery in a fresh interpreter; its end of the pair is its standard input."""
    path = Path(settings.folder) / "nursery.msgpack"  # a private folder: a command line is seen by all users
    ours = str(Path(shoestring.__file__).parents[1])
    known = os.environ["PYTHONPATH"] if "PYTHONPATH" in os.environ else ""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.msgpack.encode(settings))
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "shoestring.infer.spawned", str(path)],
                stdin=end.fileno(),
                stdout=out,
                stderr=out,
                start_new_session=True,
                env=os.environ
                | {
                    "SHOESTRING_PARENT": str(os.getpid()),
                    "PYTHONPATH": f"{ours}{os.pathsep}{known}" if known else ours,
                },
            )
    except OSError as error:
        raise FleetError(f"cannot start a process: {error}", "free memory, disk or processes") from error
    pidfd = os.pidfd_open(process.pid)

    def reap() -> None:
        process.wait()
        os.close(pidfd)

    return process.pid, pidfd, reap


def _gone(why: str) -> FleetError:
    return FleetError(
        f"the process that starts a worker's children is gone: {why}",
        "look into the log of the nursery in the run's logs folder; the worker is started again",
    )
