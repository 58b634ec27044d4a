"""What `xz -9e` makes of documents: the yardstick that needs no training (source: ours)."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from shoestring.base.errors import DataError


@dataclass(frozen=True)
class Compressed:
    """Sizes after compression.

    Attributes:
        n_bytes: bytes of text in all.
        per_file_bytes: sum of the documents' sizes, each compressed alone.
        archive_bytes: size of one compressed tar archive of all of them.
    """

    n_bytes: int
    per_file_bytes: int
    archive_bytes: int

    @property
    def per_file_bits_per_byte(self) -> float:
        """Each document alone, as a model sees them that starts each anew."""
        return 8 * self.per_file_bytes / self.n_bytes

    @property
    def archive_bits_per_byte(self) -> float:
        """All in one: later documents may refer to earlier ones."""
        return 8 * self.archive_bytes / self.n_bytes


def xz_sizes(
    documents: Iterable[tuple[str, bytes]], on_progress: Callable[[int], None] | None = None
) -> Compressed:
    """Compress (name, text) pairs; the archive holds them in order of their names.

    Args:
        on_progress: called with the number of documents done.

    Raises:
        DataError: when there is no text.
    """
    ordered = sorted(documents)
    n_bytes = sum(len(data) for _, data in ordered)
    if not n_bytes:
        raise DataError("there is no text to compress", "hold out files that are not empty")
    per_file_bytes = 0
    for done, (_, data) in enumerate(ordered, start=1):
        per_file_bytes += len(xz(data))
        if on_progress is not None:
            on_progress(done)
    return Compressed(n_bytes, per_file_bytes, len(xz(tar(ordered))))


def xz(data: bytes) -> bytes:
    """What the command `xz -9e` writes."""
    return lzma.compress(data, lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def tar(documents: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar archive of (name, text) pairs that depends on nothing else: no times, no owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in documents:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return buffer.getvalue()
