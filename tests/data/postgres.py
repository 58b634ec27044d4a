"""A PostgreSQL server of its own, in a temporary folder: starts, dies by SIGKILL, comes back with its data.

The binaries are those of Debian's package `postgresql`. As root it runs as another user, since it refuses
root. It listens on a Unix socket, and on loopback where a port is asked for.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
import psycopg

PATIENCE_S = 90.0
MISSING = "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
SETTINGS = {
    "fsync": "off",  # only processes are killed here, never the machine
    "shared_buffers": "16MB",
    "max_connections": "30",
    "max_wal_size": "64MB",
    "autovacuum": "off",
    "logging_collector": "off",
}


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are; None: no server is installed."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(found[-1]).parent if found else None


class Server:
    """A server; made and started by `start`, gone with `close`.

    Args:
        port: on loopback too; 0: the Unix socket alone.
    """

    def __init__(self, port: int = 0) -> None:
        found = binaries()
        assert found is not None, "install Debian's package postgresql"
        self._bin = found
        self._port = port
        self.folder = Path(tempfile.mkdtemp(prefix="shoestring-pg-", dir="/tmp"))
        self._user = _unprivileged()
        self.folder.chmod(0o755)
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        self.data = self.folder / "data"
        self._run(
            "initdb", "-D", self.data, "-U", "shoestring", "--auth=trust", "-E", "UTF8", "--locale=C",
            "--no-sync", "--no-instructions",
        )  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Come up, and answer."""
        assert self._process is None
        settings = SETTINGS | {"unix_socket_directories": str(self.folder), "port": str(self._port or 5432)}
        settings["listen_addresses"] = "127.0.0.1" if self._port else ""
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as_user(), self._bin / "postgres", "-D", self.data, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
            )  # fmt: skip
        until_s = time.monotonic() + PATIENCE_S
        while not self.answers():
            assert self._process.poll() is None, f"the server does not start: {self._tail()}"
            assert time.monotonic() < until_s, f"the server does not answer: {self._tail()}"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL to all of its processes, at once."""
        if self._process is None:
            return
        try:
            main = psutil.Process(self._process.pid)
            family = [main, *main.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for one in family:  # the first is the one that would start others
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        until_s = time.monotonic() + PATIENCE_S
        while any(_runs(one) for one in family):
            assert time.monotonic() < until_s, "the server does not die"
            time.sleep(0.005)
        self._process = None

    def restart(self) -> None:
        """Die and come back."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Die, and leave nothing."""
        self.kill()
        shutil.rmtree(self.folder)

    # --- use --------------------------------------------------------------------------------------

    def url(self, database: str = "postgres", **query: str) -> str:
        """As SQLAlchemy reads it."""
        where = f"127.0.0.1:{self._port}" if self._port else ""
        asked = query if self._port else {"host": str(self.folder)} | query
        tail = "&".join(f"{key}={value}" for key, value in asked.items())
        return f"postgresql+psycopg://shoestring@{where}/{database}" + (f"?{tail}" if tail else "")

    def answers(self) -> bool:
        """Whether it takes a connection now."""
        try:
            with self.connect():
                return True
        except psycopg.OperationalError:
            return False

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        """Straight to it; each statement is its own transaction."""
        host, port = ("127.0.0.1", self._port) if self._port else (str(self.folder), 5432)
        return psycopg.connect(
            host=host, port=port, user="shoestring", dbname=database, autocommit=True, connect_timeout=10
        )

    def new_database(self, name: str) -> str:
        """An empty database; returns its URL."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')  # type: ignore[arg-type]
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url(name)

    # --- inside -----------------------------------------------------------------------------------

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        # It dies with the test that started it, whatever becomes of that.
        ids = [f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}", "--clear-groups"]
        return ["setpriv", *ids, "--pdeathsig", "KILL"]

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [*self._as_user(), self._bin / program, *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, cwd="/", timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()

    def _tail(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]


def _runs(process: psutil.Process) -> bool:
    """Whether it is there, and not only waiting for its parent to hear that it is dead."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _unprivileged() -> pwd.struct_passwd | None:
    """Whom to run as; None: as we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("there is no user postgres or nobody")


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
