"""The commit side of checkpoints: a directory counts once its manifest is in place (source: ours).

Workers write tensors into `step-NNNNNNNN.tmp`; the coordinator adds `manifest.json` (the ledger's
snapshot, sizes and checksums of the files), syncs, and renames. A reader trusts a directory only
if every file matches its checksum; a damaged one is named and skipped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shoestring.base.errors import CheckpointError
from shoestring.base.files import sync_folder

MANIFEST = "manifest.json"


class Manifest(msgspec.Struct, frozen=True):
    """What a checkpoint is: its step, the ledger's snapshot, and its files as name -> (bytes, sha256)."""

    step: int
    elapsed_s: float
    ledger: bytes
    files: dict[str, tuple[int, str]]
    about: dict[str, Any] = {}


@dataclass(frozen=True)
class Found:
    """The newest intact checkpoint, if any, and the damaged ones that were passed over, with reasons."""

    path: str = ""
    manifest: Manifest | None = None
    damaged: tuple[tuple[str, str], ...] = ()


class Keeper(Protocol):
    """Where the coordinator commits and finds checkpoints."""

    def begin(self, step: int) -> str:
        """A fresh directory for the workers to write to."""
        ...

    def commit(self, manifest: Manifest) -> int:
        """Make the checkpoint count and drop old ones; returns its bytes. Raises CheckpointError."""
        ...

    def abandon(self, step: int) -> None:
        """Remove what was written of a checkpoint that failed."""
        ...

    def newest(self) -> Found:
        """The newest intact checkpoint."""
        ...

    def distrust(self, path: str, reason: str) -> None:
        """Never offer this checkpoint again: a worker could not restore it."""
        ...


@dataclass
class DiskKeeper:
    """Checkpoints under one directory of the file system; the last `keep` stay."""

    root: Path
    keep: int
    _distrusted: dict[str, str] = field(default_factory=dict)

    def begin(self, step: int) -> str:
        """Make an empty `.tmp` directory.

        Raises:
            CheckpointError: the directory cannot be made (full or read-only disk).
        """
        aside = self._aside(step)
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(f"cannot make {aside}: {error}", "free some space there") from error
        return str(aside)

    def commit(self, manifest: Manifest) -> int:
        """Write the manifest, sync, rename, drop what is older than the last `keep`.

        What lies beyond this step belongs to a past that the run has left, and is put aside.

        Raises:
            CheckpointError: the disk is full, or a file has not the size that its worker reported.
        """
        aside, final = self._aside(manifest.step), self.root / f"step-{manifest.step:08d}"
        try:
            for name, (size, _) in manifest.files.items():
                if (aside / name).stat().st_size != size:
                    raise OSError(f"{name} is not {size} bytes long")
            with (aside / MANIFEST).open("wb") as file:
                file.write(msgspec.json.encode(manifest))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(aside)
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
            sync_folder(self.root)
            self._distrusted.pop(final.name, None)  # what stands there now is another checkpoint
            self._drop_others(final)
        except OSError as error:
            raise CheckpointError(
                f"cannot commit the checkpoint {final}: {error}", "free some space there"
            ) from error
        return sum(size for size, _ in manifest.files.values())

    def abandon(self, step: int) -> None:
        """Remove the `.tmp` directory of `step`."""
        shutil.rmtree(self._aside(step), ignore_errors=True)

    def newest(self) -> Found:
        """Check from the newest down until one is intact."""
        damaged: list[tuple[str, str]] = []
        for path in sorted(self.root.glob("step-????????"), reverse=True):
            reason = self._distrusted[path.name] if path.name in self._distrusted else ""
            manifest, reason = (None, reason) if reason else read_manifest(path)
            if manifest is not None:
                return Found(str(path), manifest, tuple(damaged))
            damaged.append((str(path), reason))
        return Found(damaged=tuple(damaged))

    def distrust(self, path: str, reason: str) -> None:
        """Remember for the life of this keeper; the files stay for whoever wants to look."""
        self._distrusted[Path(path).name] = reason

    def _aside(self, step: int) -> Path:
        return self.root / f"step-{step:08d}.tmp"

    def _drop_others(self, newest: Path) -> None:
        """Keep the last `keep` up to `newest`.

        A later step than the newest commit is one that the run could not restore and went back
        from. It is put aside as `.left`: it must neither count among the last nor come back.
        """
        for path in sorted(self.root.glob("step-????????")):
            if path.name > newest.name:
                left = path.with_name(f"{path.name}.left")
                shutil.rmtree(left, ignore_errors=True)
                path.rename(left)
        for path in sorted(self.root.glob("step-????????"))[: -self.keep]:
            shutil.rmtree(path, ignore_errors=True)
        for path in self.root.glob("step-????????.left"):
            if path.name < newest.name:
                shutil.rmtree(path, ignore_errors=True)


def read_manifest(path: Path, verify: bool = True) -> tuple[Manifest | None, str]:
    """(manifest, ""), or (None, what is wrong with this checkpoint)."""
    try:
        manifest = msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
        return None, f"manifest: {error}"
    for name, (size, checksum) in manifest.files.items() if verify else ():
        try:
            if file_checksum(path / name) != (size, checksum):
                return None, f"{name} does not match its checksum"
        except OSError as error:
            return None, f"{name}: {error}"
    return manifest, ""


def file_checksum(path: Path) -> tuple[int, str]:
    """(bytes, sha256 in hex) of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return path.stat().st_size, digest.hexdigest()
