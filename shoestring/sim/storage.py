"""The simulated disk, and checkpoints on it with the same rules as on a real one (source: ours)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import msgspec

from shoestring.base.errors import CheckpointError
from shoestring.fleet.checkpoints import Found, Manifest

MANIFEST = "manifest.json"


@dataclass
class Disk:
    """Directories of files; survives every process. `full` makes each write fail."""

    folders: dict[str, dict[str, bytes]] = field(default_factory=dict)
    full: bool = False

    def write(self, folder: str, name: str, data: bytes) -> tuple[int, str]:
        """Write a file; returns (bytes, sha256 in hex).

        Raises:
            CheckpointError: the disk is full, or the directory is gone.
        """
        if self.full or folder not in self.folders:
            raise CheckpointError(f"cannot write {folder}/{name}", "free some space")
        self.folders[folder][name] = data
        return len(data), hashlib.sha256(data).hexdigest()

    def committed(self) -> list[str]:
        """Names of the committed checkpoints, oldest first."""
        return sorted(name for name in self.folders if len(name) == len("step-00000000"))

    def damage(self, folder: str, which: int) -> None:
        """Spoil one file of a directory, for good."""
        files = self.folders[folder]
        name = sorted(files)[which % len(files)]
        files[name] = files[name][:-1] + b"??"


class MemoryKeeper:
    """Commits and finds checkpoints on a `Disk`: the fake beside `fleet.checkpoints.DiskKeeper`."""

    def __init__(self, disk: Disk, keep: int) -> None:
        self._disk = disk
        self._keep = keep
        self._distrusted: dict[str, str] = {}

    def begin(self, step: int) -> str:
        """Make an empty directory aside.

        Raises:
            CheckpointError: the disk is full.
        """
        if self._disk.full:
            raise CheckpointError("no space for a checkpoint", "free some space")
        self._disk.folders[_aside(step)] = {}
        return _aside(step)

    def commit(self, manifest: Manifest) -> int:
        """Let the directory count; what lies beyond its step belongs to a past that was left.

        Raises:
            CheckpointError: the disk is full, or a file is not as its worker reported it.
        """
        aside = _aside(manifest.step)
        files = self._disk.folders[aside] if aside in self._disk.folders else {}
        for name, (size, _) in manifest.files.items():
            if name not in files or len(files[name]) != size:
                raise CheckpointError(f"{aside}/{name} is not {size} bytes long", "free some space")
        self._disk.write(aside, MANIFEST, msgspec.json.encode(manifest))
        final = f"step-{manifest.step:08d}"
        self._disk.folders[final] = self._disk.folders.pop(aside)
        self._distrusted.pop(final, None)
        for name in self._disk.committed():
            if name > final:
                self._disk.folders[f"{name}.left"] = self._disk.folders.pop(name)
        for name in [name for name in self._disk.folders if name.endswith(".left") and name < final]:
            del self._disk.folders[name]
        for name in self._disk.committed()[: -self._keep]:
            del self._disk.folders[name]
        return sum(size for size, _ in manifest.files.values())

    def abandon(self, step: int) -> None:
        """Remove what was written of a checkpoint that failed."""
        self._disk.folders.pop(_aside(step), None)

    def newest(self) -> Found:
        """Check from the newest down until one is intact."""
        damaged: list[tuple[str, str]] = []
        for name in reversed(self._disk.committed()):
            reason = self._distrusted[name] if name in self._distrusted else ""
            manifest, reason = (None, reason) if reason else read_manifest(self._disk.folders[name])
            if manifest is not None:
                return Found(name, manifest, tuple(damaged))
            damaged.append((name, reason))
        return Found(damaged=tuple(damaged))

    def distrust(self, path: str, reason: str) -> None:
        """Never offer this checkpoint again in the life of this keeper."""
        self._distrusted[path] = reason


def read_manifest(files: dict[str, bytes]) -> tuple[Manifest | None, str]:
    """(manifest, ""), or (None, what is wrong with this checkpoint)."""
    try:
        manifest = msgspec.json.decode(files[MANIFEST], type=Manifest)
    except (KeyError, msgspec.DecodeError) as error:
        return None, f"manifest: {error}"
    for name, (size, checksum) in manifest.files.items():
        data = files[name] if name in files else b""
        if (len(data), hashlib.sha256(data).hexdigest()) != (size, checksum):
            return None, f"{name} does not match its checksum"
    return manifest, ""


def _aside(step: int) -> str:
    return f"step-{step:08d}.tmp"
