"""A folder that output goes into: the few things that a sink does there, local or on any fsspec URL.

What is local is durable once a call has returned. An object store has no rename that is one step: there the
manifest and the ledger say what counts, and a move that was cut short is done again. Source: ours.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shoestring.base.errors import SinkError

T = TypeVar("T")
TODO = {
    errno.ENOSPC: "free some space, then resume the run",
    errno.EDQUOT: "free some of your quota, then resume the run",
    errno.EROFS: "make it writable, or choose another place for the output",
    errno.EACCES: "make it writable, or choose another place for the output",
    errno.ENOTDIR: "choose a folder for the output, not a file",
    errno.EEXIST: "choose a folder for the output, not a file",
}


class Folder(Protocol):
    """What a sink needs of a folder; names are relative to it and may have folders in them.

    Raises (every call):
        SinkError: it cannot be done; the text says why and what to do.
    """

    def make(self, name: str = "") -> None:
        """Make a folder, and those above it."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none. A folder has 0."""
        ...

    def names(self, name: str = "") -> list[str]:
        """What is in a folder; nothing, where there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all."""
        ...

    def create(self, name: str) -> IO[bytes]:
        """Begin a file; `settle` ends it. What is there is written over."""
        ...

    def settle(self, name: str, stream: IO[bytes]) -> None:
        """A file that was begun is complete: durable on return."""
        ...

    def move(self, source: str, target: str) -> None:
        """Rename a file or a folder, over what is there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing there is as well."""
        ...


def folder_of(path: str) -> Folder:
    """The folder that a path or an fsspec URL names.

    Raises:
        SinkError: nobody knows this kind of URL.
    """
    if not path:
        raise SinkError("the output has no place", "name a folder")
    try:
        system, root = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError, OSError) as error:
        raise SinkError(
            f"cannot write to {_plain(path)}: {error}",
            "check the URL; some kinds need a package of their own",
        ) from error
    return (
        LocalFolder(Path(root)) if isinstance(system, LocalFileSystem) else RemoteFolder(system, root, path)
    )


class LocalFolder:
    """See Folder; on this machine's disks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, name: str = "") -> None:
        """See Folder."""
        self._do(lambda: (self.root / name).mkdir(parents=True, exist_ok=True))

    def size(self, name: str) -> int | None:
        """See Folder."""
        try:
            found = (self.root / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error(error) from error
        return 0 if os.path.isdir(self.root / name) else found.st_size

    def names(self, name: str = "") -> list[str]:
        """See Folder."""
        try:
            return sorted(os.listdir(self.root / name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._error(error) from error

    def read(self, name: str) -> bytes | None:
        """See Folder."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._error(error) from error

    def put(self, name: str, data: bytes) -> None:
        """See Folder."""
        part = f"{name}.part"
        stream = self.create(part)
        try:
            stream.write(data)
        except OSError as error:
            stream.close()
            self.remove(part)
            raise self._error(error) from error
        self.settle(part, stream)
        self.move(part, name)

    def create(self, name: str) -> IO[bytes]:
        """See Folder."""
        return self._do(lambda: open(self.root / name, "wb"))

    def settle(self, name: str, stream: IO[bytes]) -> None:
        """See Folder."""

        def act() -> None:
            with stream:
                stream.flush()
                os.fsync(stream.fileno())
            self._sync((self.root / name).parent)

        self._do(act)

    def move(self, source: str, target: str) -> None:
        """See Folder."""

        def act() -> None:
            os.replace(self.root / source, self.root / target)
            self._sync((self.root / target).parent)

        self._do(act)

    def remove(self, name: str) -> None:
        """See Folder."""

        def act() -> None:
            path = self.root / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

        self._do(act)

    def _sync(self, folder: Path) -> None:
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def _do(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> SinkError:
        return cannot_write(str(self.root), error)


class RemoteFolder:
    """See Folder; through fsspec. A move copies, and then removes: it can be cut short, and is done again."""

    def __init__(self, system: Any, root: str, url: str) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._url = url

    def make(self, name: str = "") -> None:
        """See Folder."""
        self._do(lambda: self._system.makedirs(self._path(name), exist_ok=True))

    def size(self, name: str) -> int | None:
        """See Folder."""

        def look() -> int | None:
            self._system.invalidate_cache()
            try:
                about = self._system.info(self._path(name))
            except FileNotFoundError:
                return None
            return int(about["size"] or 0) if about["type"] == "file" else 0

        return self._do(look)

    def names(self, name: str = "") -> list[str]:
        """See Folder."""

        def look() -> list[str]:
            self._system.invalidate_cache()
            try:
                found = self._system.ls(self._path(name), detail=False)
            except FileNotFoundError:
                return []
            return sorted(one.rstrip("/").rsplit("/", 1)[-1] for one in found)

        return self._do(look)

    def read(self, name: str) -> bytes | None:
        """See Folder."""

        def look() -> bytes | None:
            try:
                return bytes(self._system.cat_file(self._path(name)))
            except FileNotFoundError:
                return None

        return self._do(look)

    def put(self, name: str, data: bytes) -> None:
        """See Folder."""
        self._do(lambda: self._system.pipe_file(self._path(name), data))

    def create(self, name: str) -> IO[bytes]:
        """See Folder."""
        found: IO[bytes] = self._do(lambda: self._system.open(self._path(name), "wb"))
        return found

    def settle(self, name: str, stream: IO[bytes]) -> None:
        """See Folder."""
        self._do(stream.close)

    def move(self, source: str, target: str) -> None:
        """See Folder."""
        self._do(lambda: self._system.mv(self._path(source), self._path(target), recursive=True))

    def remove(self, name: str) -> None:
        """See Folder."""

        def act() -> None:
            with suppress(FileNotFoundError):
                self._system.rm(self._path(name), recursive=True)

        self._do(act)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _do(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            raise cannot_write(_plain(self._url), error) from error


def cannot_write(where: str, error: OSError) -> SinkError:
    """What to tell of a sink that failed so."""
    reason = error.strerror or str(error) or type(error).__name__
    todo = TODO[error.errno] if error.errno in TODO else "mend it, then resume the run"
    return SinkError(f"cannot write the output to {where}: {reason}", todo)


def _plain(url: str) -> str:
    """Without what may be a password."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{rest.rsplit('@', 1)[-1]}"
