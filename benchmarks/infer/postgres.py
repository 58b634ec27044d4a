"""A PostgreSQL server of our own on loopback, that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.network.arms import PartError


class Server:
    """See `server`.

    Attributes:
        port: on 127.0.0.1.
    """

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, name: str) -> str:
        """Of a database, for a job's ledger."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"

    def create(self, name: str) -> None:
        """A database."""
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), name)

    def start(self) -> None:
        """Start it, and wait until it answers. After a kill it waits for the last process that was left."""
        deadline_s = time.monotonic() + 30.0
        while time.monotonic() < deadline_s:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}",
                ],
                user="postgres", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=(self._folder / "log").open("ab"), start_new_session=True,
            )  # fmt: skip
            while self._process.poll() is None and time.monotonic() < deadline_s:
                with contextlib.suppress(PartError):
                    self._run("psql", "-h", "127.0.0.1", "-p", str(self.port), "-c", "select 1", "postgres")
                    return
                time.sleep(0.05)
        raise PartError(f"PostgreSQL did not start: {self.log()[-800:]}", "look at its log")

    def kill(self) -> None:
        """SIGKILL to the server and to all of its processes."""
        if self._process is None:
            return
        for child in children(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None

    def log(self) -> str:
        """What it has said."""
        return (self._folder / "log").read_text(errors="replace") if (self._folder / "log").exists() else ""

    def prepare(self) -> None:
        """An empty cluster of databases."""
        self._run("initdb", "-A", "trust", "-D", str(self._folder / "data"))

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *words], user="postgres", capture_output=True, text=True,
            cwd="/tmp", timeout=60.0,
        )  # fmt: skip
        if done.returncode:
            raise PartError(
                f"{program} failed: {done.stderr[-500:]}", "is PostgreSQL installed (Debian's packages)?"
            )


def children(pid: int) -> list[int]:
    """Of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def available() -> Path | None:
    """The folder of PostgreSQL's programs; None: it is not installed, or we are not root."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if os.geteuid() != 0 or not folders or not any(user.pw_name == "postgres" for user in pwd.getpwall()):
        return None
    return folders[-1]


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A running server with a cluster of its own; both are gone afterwards."""
    programs = available()
    if programs is None:
        raise PartError("there is no PostgreSQL here", "apt-get install postgresql, and be root")
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        shutil.chown(folder, "postgres")
        made = Server(folder, programs)
        made.prepare()
        made.start()
        try:
            yield made
        finally:
            made.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
