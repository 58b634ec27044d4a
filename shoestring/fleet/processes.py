"""Child processes of the supervisor: started, watched and killed by the pid we started (source: ours).

A child lives in a session of its own, so that Ctrl-C in the terminal reaches the supervisor only.
It dies with its parent (PR_SET_PDEATHSIG), writes stdout and stderr to a log file, and sends the
error it ends with through a pipe, which works on a full disk too.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shoestring.base.errors import FleetError, ShoestringError

_PR_SET_PDEATHSIG = 1
WORDS_LIMIT_BYTES = 32 * 1024
"""Less than a pipe holds, so that writing its last words never blocks a dying child."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: exit code (-N: signal N) and its last words or the tail of its log."""

    code: int
    words: str


@dataclass
class Child:
    """A process that we started.

    Attributes:
        pid: its process id.
        pidfd: readable once it has ended.
        words_fd: our end of the pipe for its last words.
        log: its log file; `log_start` is where this process's part begins.
    """

    pid: int
    pidfd: int
    words_fd: int
    log: Path
    log_start: int

    def poll(self) -> Ended | None:
        """How it ended, or None while it runs. Ask no more after it has ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        words = self._words()
        os.close(self.pidfd)
        os.close(self.words_fd)
        code = os.waitstatus_to_exitcode(status)
        text = words or self._log_tail()
        if code < 0:
            text = f"{text}\nkilled by {signal.Signals(-code).name}".strip()
        return Ended(code, text or f"exit code {code}, nothing written")

    def kill(self) -> None:
        """SIGKILL; ends a stopped process too. A process that has ended but was not polled ignores it."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGTERM)

    def _words(self) -> str:
        os.set_blocking(self.words_fd, False)
        try:
            return os.read(self.words_fd, WORDS_LIMIT_BYTES).decode(errors="replace").strip()
        except BlockingIOError:  # a grandchild still holds the other end
            return ""

    def _log_tail(self, lines: int = 20) -> str:
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start, size - WORDS_LIMIT_BYTES))
            return "\n".join(file.read().decode(errors="replace").strip().splitlines()[-lines:])


def fork_child(body: Callable[[int], int], log: Path, keep_fds: tuple[int, ...] = ()) -> Child:
    """Fork; the child runs `body(words_fd)` and exits with what that returns.

    Takes milliseconds, because everything is imported already. The caller must have one thread
    only, and have run nothing that starts threads (no tensor work).

    Args:
        body: the child's work; an exception's text becomes its last words, exit code 1.
        log: appended to.
        keep_fds: descriptors that stay open in the child, beside 0, 1 and 2.

    Raises:
        FleetError: the log or the process could not be made.
    """
    parent = os.getpid()
    try:
        log_fd, log_start = _open_log(log)
        words_read, words_write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
    except OSError as error:
        raise FleetError(f"cannot start a process: {error}", "free memory, disk or processes") from error
    if pid == 0:
        code = 70
        try:
            code = _in_child(body, parent, log_fd, words_write, keep_fds)
        finally:
            os._exit(code)  # never back into the parent's program
    os.close(log_fd)
    os.close(words_write)
    return Child(pid, os.pidfd_open(pid), words_read, log, log_start)


def spawn_child(arguments: list[str], log: Path, environment: dict[str, str]) -> Child:
    """Start a fresh interpreter on `arguments`; it finds the pipe's number in `SHOESTRING_WORDS_FD`.

    Seconds slower than a fork, but safe where devices were touched (CUDA forbids a fork then).

    Raises:
        FleetError: as for `fork_child`.
    """
    try:
        log_fd, log_start = _open_log(log)
        words_read, words_write = os.pipe()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(words_write,),
            start_new_session=True,
            env=os.environ
            | environment
            | {"SHOESTRING_WORDS_FD": str(words_write), "SHOESTRING_PARENT": str(os.getpid())},
        )
    except OSError as error:
        raise FleetError(f"cannot start a process: {error}", "free memory, disk or processes") from error
    os.close(log_fd)
    os.close(words_write)
    # From here on only `Child` waits for it; Popen must not reap it behind our back.
    process.returncode = 0
    return Child(process.pid, os.pidfd_open(process.pid), words_read, log, log_start)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above took effect
        os._exit(1)


def run_body(body: Callable[[int], int], words_fd: int) -> int:
    """Run a child's work; an uncaught exception goes to the log and the pipe."""
    try:
        return body(words_fd)
    except BaseException as error:  # noqa: BLE001  whatever ends a child is said, never lost
        text = str(error) if isinstance(error, ShoestringError) else traceback.format_exc()
        print(traceback.format_exc(), file=sys.stderr)
        os.write(words_fd, text.encode()[-WORDS_LIMIT_BYTES:])
        return error.exit_code if isinstance(error, ShoestringError) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def raise_file_limit() -> None:
    """Allow as many open files as this user may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_log(log: Path) -> tuple[int, int]:
    log.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    return fd, os.fstat(fd).st_size


def _in_child(
    body: Callable[[int], int], parent: int, log_fd: int, words_fd: int, keep_fds: tuple[int, ...]
) -> int:
    os.setsid()
    die_with_parent(parent)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    _close_all_but({0, 1, 2, words_fd, *keep_fds})
    sys.stdin = open(0, closefd=False)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    return run_body(body, words_fd)


def _close_all_but(keep: set[int]) -> None:
    """The parent's descriptors of other children, its run lock and its sockets are not ours.

    Their numbers stay taken, by /dev/null: objects of the parent still think that they own them. One that is
    collected here closes its number, and one with unwritten text writes it, whatever has that number by then.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for entry in os.listdir("/proc/self/fd"):
        fd = int(entry)
        if fd not in keep and fd != null:
            try:
                os.fstat(fd)
            except OSError:
                continue  # the descriptor of the listing itself
            os.dup2(null, fd, inheritable=False)
