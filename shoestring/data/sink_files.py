"""A folder that output goes to, local or behind an fsspec URL: the few operations that committing needs.

Source: ours.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shoestring.base.errors import ShoestringError, SinkError, first_line, without_passwords
from shoestring.base.files import sync_folder

RESUME = "then resume the run: what is committed stays"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_NO_FOLDER = frozenset({errno.ENOTDIR, errno.EEXIST})


class Files(Protocol):
    """Files in a folder, by names relative to it, with `/` between folders.

    Raises (every call):
        SinkError: it cannot be done; with what to do about it.
    """

    def telling(self, doing: str = "write to") -> AbstractContextManager[None]:
        """What streams of `create` raise inside becomes a SinkError, too."""
        ...

    def make(self, folder: str = "") -> None:
        """Make a folder and those above it; one that exists is fine."""
        ...

    def listed(self, folder: str = "") -> dict[str, int]:
        """Files and folders directly in a folder -> bytes (folders: -1); none where there is no folder."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of a file; None: there is none."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file's contents; None: there is none."""
        ...

    def create(self, name: str) -> BinaryIO:
        """A new file, to be written; within `telling`."""
        ...

    def settle(self, stream: BinaryIO) -> None:
        """Close a file that `create` gave; its contents are durable then."""
        ...

    def sync(self, folder: str = "") -> None:
        """Make the names in a folder durable."""
        ...

    def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
        """Write a small file, whole or not at all, durable. With `fresh` only where there is none; says
        whether it was written."""
        ...

    def move(self, old: str, new: str) -> None:
        """Rename a file, or a folder with all that is in it, over a file that is there."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; where there is none, nothing."""
        ...


def files_of_sink(path: str) -> Files:
    """The folder of a sink.

    Raises:
        SinkError: no path, or one whose kind is not known here.
    """
    if not path:
        raise SinkError("the job has no place for its output", "name a folder: sink.path")
    try:
        system, root = fsspec.core.url_to_fs(os.path.expanduser(path))
    except ImportError as error:
        raise SinkError(
            f"cannot write to {without_passwords(path)}: {without_passwords(str(error))}",
            "install the package for that kind of URL, or choose another",
        ) from error
    except Exception as error:
        raise SinkError(
            f"cannot write to {without_passwords(path)}: {_said(error)}",
            "check the address, and your rights there",
        ) from error
    return (
        LocalFiles(Path(root).absolute())
        if isinstance(system, LocalFileSystem)
        else UrlFiles(system, root, path)
    )


@contextmanager
def telling(where: str, doing: str, kinds: tuple[type[Exception], ...] = (OSError,)) -> Iterator[None]:
    """What goes wrong inside becomes a SinkError that says what to do.

    Raises:
        SinkError: for errors of these kinds; errors of ours stay as they are.
    """
    try:
        yield
    except ShoestringError:
        raise
    except kinds as error:
        raise SinkError(f"cannot {doing} {without_passwords(where)}: {_said(error)}", _todo(error)) from error


def _said(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    return without_passwords(first_line(error))


def part_name(name: str) -> str:
    """What a small file is called while it is written: another name each time, for workers on several hosts
    write the same file at once, and those in containers have the same process numbers."""
    return f".{name}.{secrets.token_hex(4)}.part"


def is_part(name: str, of: str) -> bool:
    """Whether this is what is left of a writing of that file."""
    return name.startswith(f".{of}.") and name.endswith(".part")


def _todo(error: Exception) -> str:
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL:
        return f"free some space there, {RESUME}"
    if code in _FORBIDDEN:
        return f"let this user write there (rights, a mount that is read-only), {RESUME}"
    if code in _NO_FOLDER:
        return "sink.path goes through a file; name a folder"
    if code == errno.ENOENT:
        return f"the folder or a file in it has vanished; bring it back (a mount that is gone?), {RESUME}"
    return f"see that the place is there and can be written, {RESUME}"


class LocalFiles:
    """A folder of this machine, or one that is mounted: renames are atomic."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def telling(self, doing: str = "write to") -> AbstractContextManager[None]:
        """See Files."""
        return telling(str(self.root), doing)

    def make(self, folder: str = "") -> None:
        """See Files. The names of new folders are durable."""
        with self.telling():
            path = self.root / folder
            missing = []
            while not path.is_dir():
                missing.append(path)
                path = path.parent
            for one in reversed(missing):
                one.mkdir(exist_ok=True)
                sync_folder(one.parent)

    def listed(self, folder: str = "") -> dict[str, int]:
        """See Files."""
        with self.telling("look into"):
            try:
                entries = list(os.scandir(self.root / folder))
            except FileNotFoundError:
                return {}
            found = {}
            for entry in entries:
                with suppress(FileNotFoundError):  # it went while we looked; the others are still there
                    found[entry.name] = -1 if entry.is_dir() else entry.stat().st_size
            return found

    def size(self, name: str) -> int | None:
        """See Files."""
        with self.telling("look into"):
            try:
                return os.stat(self.root / name).st_size
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """See Files."""
        with self.telling("read from"):
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def create(self, name: str) -> BinaryIO:
        """See Files."""
        with self.telling():
            return (self.root / name).open("xb")

    def settle(self, stream: BinaryIO) -> None:
        """See Files."""
        with self.telling():
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()

    def sync(self, folder: str = "") -> None:
        """See Files."""
        with self.telling():
            sync_folder(self.root / folder)

    def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
        """See Files."""
        path = self.root / name
        part = path.with_name(part_name(path.name))
        with self.telling():
            try:
                with part.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                if fresh:
                    try:
                        os.link(part, path)  # unlike a rename it never takes the place of another
                    except FileExistsError:
                        return False
                else:
                    part.replace(path)
            finally:
                part.unlink(missing_ok=True)
            sync_folder(path.parent)
        return True

    def move(self, old: str, new: str) -> None:
        """See Files."""
        with self.telling():
            os.replace(self.root / old, self.root / new)

    def remove(self, name: str) -> None:
        """See Files."""
        path = self.root / name
        with self.telling("remove from"):
            if path.is_dir() and not path.is_symlink():
                _remove_tree(path)
            else:
                path.unlink(missing_ok=True)


class UrlFiles:
    """A folder of any file system that fsspec knows.

    What is written is durable when its file is closed, or never there: so do object stores. A move is a copy
    and a removal there; whoever is interrupted between the two finds both, and moves again.
    """

    def __init__(self, system: Any, root: str, url: str) -> None:
        self._system = system
        self._root = root.rstrip("/")
        self._url = url

    def telling(self, doing: str = "write to") -> AbstractContextManager[None]:
        """See Files. Each kind of store has errors of its own, so all are told."""
        return telling(self._url, doing, (Exception,))

    def make(self, folder: str = "") -> None:
        """See Files."""
        with self.telling():
            self._system.makedirs(self._at(folder), exist_ok=True)

    def listed(self, folder: str = "") -> dict[str, int]:
        """See Files."""
        with self.telling("look into"):
            self._system.invalidate_cache()  # others write here, too
            try:
                found = self._system.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            return {
                one["name"].rstrip("/").rsplit("/", 1)[-1]: int(one["size"]) if one["type"] == "file" else -1
                for one in found
            }

    def size(self, name: str) -> int | None:
        """See Files."""
        with self.telling("look into"):
            self._system.invalidate_cache()
            try:
                return int(self._system.info(self._at(name))["size"])
            except FileNotFoundError:
                return None

    def read(self, name: str) -> bytes | None:
        """See Files."""
        with self.telling("read from"):
            try:
                return bytes(self._system.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def create(self, name: str) -> BinaryIO:
        """See Files."""
        with self.telling():
            return cast(BinaryIO, self._system.open(self._at(name), "wb"))

    def settle(self, stream: BinaryIO) -> None:
        """See Files."""
        with self.telling():
            stream.close()

    def sync(self, folder: str = "") -> None:
        """Nothing to do: see the class."""

    def replace(self, name: str, data: bytes, fresh: bool = False) -> bool:
        """See Files; with `fresh` it is looked first, as not every store knows better."""
        if fresh and self.size(name) is not None:
            return False
        with self.telling():
            folder, _, last = name.rpartition("/")
            part = f"{folder}/{part_name(last)}".lstrip("/")
            self._system.pipe_file(self._at(part), data)
            self._system.mv(self._at(part), self._at(name))
        return True

    def move(self, old: str, new: str) -> None:
        """See Files. A folder goes file by file, so that what was interrupted goes on."""
        with self.telling():
            source, target = self._at(old), self._at(new)
            if not self._system.isdir(source):
                self._system.mv(source, target)
                return
            self._system.makedirs(target, exist_ok=True)
            for path in self._system.find(source):
                self._system.mv(path, target + path[len(source) :])
            self.remove(old)

    def remove(self, name: str) -> None:
        """See Files."""
        with self.telling("remove from"):
            self._system.invalidate_cache()
            try:
                self._system.rm(self._at(name), recursive=True)
            except FileNotFoundError:
                return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


def _remove_tree(path: Path) -> None:
    """With all that is in it. A file that comes while we remove is left, and the folder with it."""
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            _remove_tree(Path(entry.path))
        else:
            Path(entry.path).unlink(missing_ok=True)
    try:
        path.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
