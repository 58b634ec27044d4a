"""Which files are the data, and which of them are held out (source: ours)."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import fsspec
import msgspec
from fsspec.core import has_magic
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import DataError

FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__"})
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_VERSION_KEYS = (
    "mtime", "ETag", "etag", "LastModified", "last_modified", "Last-Modified", "updated", "modify",
    "modificationTime",
)  # fmt: skip


class SourceConfig(Config):
    """Where the text comes from.

    Attributes:
        files: globs (`**` goes down any number of folders), folders, files or fsspec URLs; empty: the
            source of the running Python's own standard library.
        include_tests: of the standard library, take the folders of tests as well.
        text_field: the field of a JSON line, or the column of a Parquet file, that holds the text.
        heldout_share: share of the files that is kept apart to measure with.
    """

    files: tuple[str, ...] = ()
    include_tests: bool = False
    text_field: str = "text"
    heldout_share: float = Field(default=0.04, gt=0.0, le=0.5)


class Part(msgspec.Struct, frozen=True):
    """One side of a file that is split by document, because it is the only one.

    Attributes:
        every: every that many documents, one is held out.
        heldout: this is the held-out side.
        piece_bytes: plain text is cut at line ends into documents of about this size.
    """

    every: int
    heldout: bool
    piece_bytes: int


@dataclass(frozen=True)
class SourceFile:
    """A file of the data.

    Attributes:
        name: its path below the root of its pattern, and of so many folders above as make it unique: the
            identity that decides about held-out, the same on every machine.
        url: where to open it; unique.
        version: changes when the file does (its size, and time of modification or entity tag).
        part: None: all of it.
    """

    name: str
    url: str
    size_bytes: int
    version: str
    part: Part | None = None


@dataclass(frozen=True)
class Split:
    """The files to train on and those held out, each sorted by name."""

    train: tuple[SourceFile, ...]
    heldout: tuple[SourceFile, ...]


def find_files(config: SourceConfig) -> tuple[SourceFile, ...]:
    """All files of the data, sorted by name.

    Raises:
        DataError: when a pattern matches nothing or cannot be looked up, or all that matches is empty.
    """
    if config.files:
        result = files_of(config.files)
    else:
        files = standard_library(sysconfig.get_path("stdlib"), config.include_tests)
        result = tuple(sorted(files, key=lambda file: (file.name, file.url)))
    if not any(file.size_bytes for file in result):
        raise DataError(f"all {len(result)} files of the data are empty", "give files that hold text")
    return result


def files_of(patterns: Sequence[str]) -> tuple[SourceFile, ...]:
    """All files that match, sorted by name; empty ones, too. Each is there once, and has a name of its own.

    Raises:
        DataError: when a pattern matches nothing or cannot be looked up.
    """
    found = {file.url: file for pattern in reversed(patterns) for file in _matches(pattern)}
    return tuple(sorted(_told_apart(list(found.values())), key=lambda file: (file.name, file.url)))


def version_of(url: str) -> str:
    """What `SourceFile.version` would be now; empty where the file is gone.

    Raises:
        OSError: it cannot be looked up.
    """
    system, path = fsspec.core.url_to_fs(url)
    try:
        return _version(system.info(path))
    except FileNotFoundError:
        return ""


def _told_apart(files: list[SourceFile]) -> list[SourceFile]:
    """With folders before those names that several files have, until no two are equal; others stay."""
    by_name: dict[str, list[SourceFile]] = {}
    for file in files:
        by_name.setdefault(file.name, []).append(file)
    taken = {name for name, same in by_name.items() if len(same) == 1}
    found = [same[0] for same in by_name.values() if len(same) == 1]
    for _, same in sorted((name, same) for name, same in by_name.items() if len(same) > 1):
        most = max(file.url.count("/") for file in same) + 1
        for more in range(1, most + 1):
            names = [_longer(file, more) for file in same]
            if len(set(names)) == len(names) and taken.isdisjoint(names):
                break
        else:
            names = [file.url for file in same]
        taken.update(names)
        found += [replace(file, name=name) for file, name in zip(same, names, strict=True)]
    return found


def _longer(file: SourceFile, more: int) -> str:
    """The name with that many folders before it; where there are not so many, all there is."""
    folders = file.url.removesuffix(file.name).rstrip("/").split("/")
    return "/".join([*folders[-more:], file.name]) if more < len(folders) else file.url


def standard_library(root: str, include_tests: bool) -> list[SourceFile]:
    """The Python source below `root`, without installed packages.

    Raises:
        DataError: when there is none, as where Python lies in one zip file.
    """
    excluded = FOREIGN_FOLDERS if include_tests else FOREIGN_FOLDERS | TEST_FOLDERS
    found = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if name not in excluded]
        for path in (os.path.join(folder, name) for name in names if name.endswith(".py")):
            # A link to nowhere is no source; the distribution's doing, not the user's.
            if os.path.isfile(path):
                about = os.stat(path)
                name = os.path.relpath(path, root).replace(os.sep, "/")
                found.append(SourceFile(name, path, about.st_size, f"{about.st_mtime_ns}:{about.st_size}"))
    if not found:
        raise DataError(
            f"this Python has no source of its standard library in {root}",
            "name your own text: --set data.files='docs/**/*.md'",
        )
    return found


def split_files(files: Sequence[SourceFile], heldout_share: float) -> Split:
    """Keep a share of the files apart, chosen by a hash of their names.

    A file larger than half of what shall be held out goes to training, lest one file be most of the
    figure. Where the hash picks none, the file that comes closest is taken. A single file is split by
    document instead.

    Raises:
        DataError: when there are no files.
    """
    if not files:
        raise DataError("there are no files to split", "give files that hold text")
    if len(files) == 1:
        return _split_one(files[0], heldout_share)
    largest_bytes = heldout_share * sum(file.size_bytes for file in files) / 2
    eligible = [file for file in files if 0 < file.size_bytes <= largest_bytes]
    heldout = {file.url for file in eligible if name_hash(file.name) < heldout_share}
    if not heldout:
        candidates = eligible or [file for file in files if file.size_bytes]
        heldout = {min(candidates, key=lambda file: (name_hash(file.name), file.url)).url}
    return Split(
        tuple(file for file in files if file.url not in heldout),
        tuple(file for file in files if file.url in heldout),
    )


def name_hash(name: str) -> float:
    """A number in [0, 1), fixed by the name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64


def _split_one(file: SourceFile, heldout_share: float) -> Split:
    every = max(2, round(1 / heldout_share))
    # Some four held-out pieces even of a short text, and pieces no longer than a usual source file.
    piece_bytes = min(max(file.size_bytes // (4 * every), 1 << 12), 1 << 16)
    train, heldout = (replace(file, part=Part(every, held, piece_bytes)) for held in (False, True))
    return Split((train,), (heldout,))


def _matches(pattern: str) -> list[SourceFile]:
    try:
        system, path = fsspec.core.url_to_fs(os.path.expanduser(pattern))
        if has_magic(path):
            found, root = system.glob(path, detail=True), _fixed_folder(path)
        elif system.isdir(path):
            root = path.rstrip("/")
            found = system.find(root, detail=True)
        else:
            found, root = {path: system.info(path)}, _parent(path)
        files = [_source_file(system, path, about, root) for path, about in found.items()]
    except FileNotFoundError as error:
        raise _nothing(pattern) from error
    except (OSError, ValueError, ImportError) as error:
        raise DataError(
            f"cannot look up the data {pattern!r}: {error}",
            "check the address, your rights there, and that the package for that kind of URL is installed",
        ) from error
    present = [file for file in files if file is not None]
    if not present:
        raise _nothing(pattern)
    return present


def _nothing(pattern: str) -> DataError:
    return DataError(
        f"no file matches the data {pattern!r}",
        "check the path; ** goes down any number of folders, and the pattern needs quotes in a shell",
    )


def _source_file(system: Any, path: str, about: dict[str, Any], root: str) -> SourceFile | None:
    if about["type"] != "file" and not (about["type"] == "link" and system.isfile(path)):
        return None
    if about["size"] is None:  # a listing that says little, as of HTTP
        about = system.info(path)
    name = path[len(root) :].lstrip("/") if path.startswith(root) else path
    version = _version(about)
    local = "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,))
    url = os.path.normpath(path) if local else str(system.unstrip_protocol(path))
    return SourceFile(name, url, int(about["size"] or 0), version)


def _version(about: dict[str, Any]) -> str:
    # The size as well: not every store tells a time or a tag, and a time may be coarse.
    stamp = next((str(about[key]) for key in _VERSION_KEYS if key in about), "")
    return f"{stamp}:{about['size']}"


def _fixed_folder(pattern: str) -> str:
    """The folders before the first wildcard."""
    parts = pattern.split("/")
    return "/".join(parts[: next(i for i, part in enumerate(parts) if has_magic(part))])


def _parent(path: str) -> str:
    return path.rsplit("/", 1)[0] if "/" in path else ""
