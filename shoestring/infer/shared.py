"""Tables in shared memory: Arrow files in a private folder, mapped without a copy (source: ours)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import tempfile
from pathlib import Path

import pyarrow as pa

from shoestring.base.errors import InferError

SHARED = Path("/dev/shm")
LEAST_BYTES = 256 << 20
"""With less than that free, shared memory is left alone (containers often have 64 MiB of it)."""
NO_ROOM = "no room in shared memory for"
"""How the error of a table that does not fit begins: other rows may be why, not its own."""
SMALL_BYTES = 1 << 16
"""A smaller table is copied: mapping it costs more, and a process may have only some 65,000 mappings."""
_PREFIX = "shoestring-rows"
_NAME = re.compile(rf"{_PREFIX}-(\d+)-(\d+)-\w+")
_LOCK = ".lock"
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT)


class Segments:
    """Tables by name, for all processes of one worker.

    A segment is written once, under a name of its own, and read by anybody. Removing it frees its memory when
    the last reader has let go of the table.

    Args:
        folder: as `make` gave it.
    """

    def __init__(self, folder: Path, lock_fd: int = -1) -> None:
        self.folder = folder
        self._lock_fd = lock_fd

    @classmethod
    def make(cls, least_bytes: int = LEAST_BYTES, shared: Path = SHARED) -> Segments:
        """A new folder that only this user may enter; those of dead processes are removed on the way.

        Args:
            least_bytes: that must be free in `shared`; else the temp directory is taken.

        Raises:
            InferError: no folder could be made.
        """
        place = shared if free_bytes(shared) >= least_bytes else Path(tempfile.gettempdir())
        try:
            for base in {place, shared}:
                _sweep(base)
            mark = f"{_PREFIX}-{os.getuid()}-{os.getpid()}-"
            folder = Path(tempfile.mkdtemp(prefix=mark, dir=place))  # mkdtemp: mode 0700
            return cls(folder, _locked(folder))
        except OSError as error:
            raise InferError(
                f"no folder for rows in flight: {error}", f"make {place} writable, or free memory there"
            ) from error

    def write(self, name: str, table: pa.Table) -> int:
        """Keep a table; its size in bytes.

        Raises:
            MemoryError: there is no room.
        """
        path = self.folder / name
        options = pa.ipc.IpcWriteOptions(unify_dictionaries=True)
        try:
            # Written, not mapped: a full shared memory is an error here, and a bus error in a mapping.
            with (
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_file(file, table.schema, options=options) as out,
            ):
                out.write_table(table)
            return path.stat().st_size
        except OSError as error:
            path.unlink(missing_ok=True)
            if error.errno in _NO_ROOM or "No space left" in str(error):
                raise MemoryError(
                    f"{NO_ROOM} {table.nbytes:,} bytes of rows in {self.folder.parent}"
                ) from error
            raise

    def read(self, name: str) -> pa.Table:
        """The table, as a view of the shared memory; a small one as a copy.

        Raises:
            FileNotFoundError: there is none of this name.
        """
        path = f"{self.folder}/{name}"
        with open(path, "rb", buffering=0) as raw:
            if os.fstat(raw.fileno()).st_size < SMALL_BYTES:
                return pa.ipc.open_file(pa.py_buffer(raw.read())).read_all()
        with pa.memory_map(path) as file, pa.ipc.open_file(file) as reader:
            return reader.read_all()

    def remove(self, name: str) -> None:
        """Forget a table; one that is not there is fine."""
        (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove everything; for who made it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1


def free_bytes(folder: Path) -> int:
    """Free there, for this user; 0 where there is no such folder."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _sweep(base: Path) -> None:
    """Remove folders of this user's workers that are gone: SIGKILL lets nobody clean up."""
    try:
        entries = os.listdir(base)
    except FileNotFoundError:
        return
    for entry in entries:
        found = _NAME.fullmatch(entry)
        if found is None or int(found[1]) != os.getuid():
            continue
        if not _held(base / entry, int(found[2])):
            shutil.rmtree(base / entry, ignore_errors=True)


def _locked(folder: Path) -> int:
    """Say that somebody uses a folder; the kernel takes it back when that process ends, however it ends."""
    part = folder / f"{_LOCK}.part"
    fd = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    part.rename(folder / _LOCK)  # locked before anybody can look
    return fd


def _held(folder: Path, pid: int) -> bool:
    """Whether somebody uses it. A pid alone says little: other containers may share this memory."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # just being made, or its process died there
        return Path(f"/proc/{pid}").exists()
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
