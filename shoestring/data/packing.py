"""Documents encoded once into token shards on disk, which later runs re-use (source: ours).

A packed directory holds `shard-00000.bin` (little-endian uint16 or uint32 token ids), beside each a
`.json` that commits it, and an `index.json` once all is done. Each shard knows where in the files it
begins and ends, so a packing that was killed goes on with the shard after the last committed one, and
a damaged shard is made anew by itself. Every document is stored as its start token, its text and its
end token; files without text are counted, what cannot be read is named.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from shoestring.base.errors import DataError
from shoestring.data.readers import Document, SkippedFile, read_file
from shoestring.data.sources import SourceFile
from shoestring.data.tokenizer import TextTokenizer

INDEX = "index.json"
_BATCH_BYTES = 1 << 20
_SHARD_BYTES = (2 << 20, 256 << 20)
_SHARDS = 64
_CHECK_BYTES = 1 << 24
_SHOWN = 3

OnProgress = Callable[[int, int], None]
M = TypeVar("M", bound=msgspec.Struct)


class Cursor(msgspec.Struct, frozen=True, order=True):
    """A place in the data: file number, and how many of its documents come before."""

    file: int = 0
    document: int = 0


class PackedDocument(msgspec.Struct, frozen=True, array_like=True):
    """A document in a shard: `n_bytes` of text in `tokens` tokens, its start and end among them."""

    name: str
    tokens: int
    n_bytes: int
    digest: str


class Shard(msgspec.Struct, frozen=True):
    """What a shard holds, and which stretch of the data it comes from.

    Attributes:
        empty: documents without text; they are not stored.
        duplicates: names of documents left out because their text was excluded.
    """

    start: Cursor
    stop: Cursor
    tokens: int
    crc32: int
    documents: list[PackedDocument]
    skipped: list[SkippedFile]
    empty: int
    duplicates: list[str]


class PackedIndex(msgspec.Struct, frozen=True):
    """A packed directory as a whole.

    Attributes:
        dtype: numpy name of a stored token.
        shard_tokens: tokens of each shard.
        n_bytes: bytes of text.
    """

    dtype: str
    vocab_size: int
    shard_tokens: list[int]
    documents: int
    n_bytes: int
    empty: int
    duplicates: list[str]
    skipped: list[SkippedFile]

    @property
    def tokens(self) -> int:
        """Tokens in all."""
        return sum(self.shard_tokens)


def pack(
    files: Sequence[SourceFile],
    text_field: str,
    tokenizer: TextTokenizer,
    directory: Path,
    exclude: frozenset[str] = frozenset(),
    on_progress: OnProgress | None = None,
    shard_bytes: int = 0,
) -> PackedIndex:
    """Encode all documents into `directory`, or take what already lies there.

    The caller gives another directory for other files, settings or another tokenizer (`prepare` does).

    Args:
        exclude: digests of texts to leave out.
        on_progress: called with (bytes of the files done, bytes of all files).
        shard_bytes: text in one shard; 0: as the size of the data suggests.

    Raises:
        DataError: when no document could be read, or the disk is full.
    """
    try:
        with _locked(directory):
            return _Packer(files, text_field, tokenizer, directory, exclude, on_progress, shard_bytes).run()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DataError(
            f"cannot write packed tokens to {directory}: {error}",
            ("free some space" if full else "check the directory") + "; packing goes on where it stopped",
        ) from error


def digest(data: bytes) -> str:
    """What tells one text from another, 128 bits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read_checked(path: Path, kind: type[M]) -> M | None:
    """A file that `write_checked` wrote; None where it is missing or damaged."""
    try:
        crc, body = path.read_bytes().split(b"\n", 1)
        return msgspec.json.decode(body, type=kind) if crc == b"%08x" % zlib.crc32(body) else None
    except (FileNotFoundError, ValueError):
        return None


def write_checked(path: Path, value: msgspec.Struct) -> None:
    """Write as JSON below a line with its checksum, whole or not at all."""
    body = msgspec.json.encode(value)
    part = path.with_suffix(".json.tmp")
    part.write_bytes(b"%08x\n" % zlib.crc32(body) + body)
    part.rename(path)


def shard_path(directory: Path, number: int) -> Path:
    """The token file of a shard; its description stands beside it, ending in .json."""
    return directory / f"shard-{number:05}.bin"


class _Packer:
    def __init__(
        self, files: Sequence[SourceFile], text_field: str, tokenizer: TextTokenizer, directory: Path,
        exclude: frozenset[str], on_progress: OnProgress | None, shard_bytes: int,
    ) -> None:  # fmt: skip
        self._files = files
        self._text_field = text_field
        self._tokenizer = tokenizer
        self._directory = directory
        self._exclude = exclude
        self._on_progress = on_progress
        sizes = [0, *(file.size_bytes for file in files)]
        self._before_bytes = np.cumsum(sizes).tolist()
        suggested = min(max(self._before_bytes[-1] // _SHARDS, _SHARD_BYTES[0]), _SHARD_BYTES[1])
        self._shard_bytes = shard_bytes or suggested
        self._dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._shown_bytes = 0
        self._end = Cursor(len(files), 0)
        # The stream of documents stays open from shard to shard; a shard made anew opens its own.
        self._at = self._end
        self._stream: Iterator[tuple[Cursor, Document | SkippedFile | None]] = iter(())

    def run(self) -> PackedIndex:
        shards: list[Shard] = []
        at = Cursor()
        while at < self._end:
            shard = self._intact(len(shards), at) or self._make(len(shards), at)
            shards.append(shard)
            at = shard.stop
            self._show(self._before_bytes[at.file])
        index = self._index(shards)
        if not index.documents:
            raise self._nothing(index)
        write_checked(self._directory / INDEX, index)
        return index

    def _intact(self, number: int, start: Cursor) -> Shard | None:
        """A committed shard, if it is the one that belongs here and its tokens are as they were written."""
        path = shard_path(self._directory, number)
        shard = read_checked(path.with_suffix(".json"), Shard)
        fits = shard is not None and shard.start == start and path.exists()
        return shard if fits and shard is not None and _file_crc32(path) == shard.crc32 else None

    def _make(self, number: int, start: Cursor) -> Shard:
        path = shard_path(self._directory, number)
        path.with_suffix(".json").unlink(missing_ok=True)
        documents: list[PackedDocument] = []
        skipped: list[SkippedFile] = []
        duplicates: list[str] = []
        waiting: list[tuple[str, bytes, str]] = []
        empty = text_bytes = waiting_bytes = crc = 0
        stop = start
        with path.with_suffix(".tmp").open("wb") as out:
            for stop, item in self._documents(start):
                if isinstance(item, SkippedFile):
                    skipped.append(item)
                elif item is not None and not item.data:
                    empty += 1
                elif item is not None:
                    mark = digest(item.data)
                    if mark in self._exclude:
                        duplicates.append(item.name)
                    else:
                        waiting.append((item.name, item.data, mark))
                        waiting_bytes += len(item.data)
                        text_bytes += len(item.data)
                    self._show(self._before_bytes[min(stop.file, len(self._files) - 1)] + item.consumed_bytes)
                full = text_bytes >= self._shard_bytes
                if waiting and (full or waiting_bytes >= _BATCH_BYTES):
                    crc = self._write(waiting, documents, out.write, crc)
                    waiting_bytes = 0
                if full:
                    break
            if waiting:
                crc = self._write(waiting, documents, out.write, crc)
        path.with_suffix(".tmp").rename(path)
        tokens = sum(document.tokens for document in documents)
        shard = Shard(start, stop, tokens, crc, documents, skipped, empty, duplicates)
        write_checked(path.with_suffix(".json"), shard)
        return shard

    def _write(
        self, waiting: list[tuple[str, bytes, str]], documents: list[PackedDocument],
        write: Callable[[bytes], int], crc: int,
    ) -> int:  # fmt: skip
        """Encode and write what waits, and empty it; the checksum of all tokens so far."""
        encoded = self._tokenizer.encode_batch([data for _, data, _ in waiting])
        for (name, data, mark), ids in zip(waiting, encoded, strict=True):
            whole = self._enclosed(ids)
            documents.append(PackedDocument(name, len(whole), len(data), mark))
            raw = whole.tobytes()
            crc = zlib.crc32(raw, crc)
            write(raw)
        waiting.clear()
        return crc

    def _enclosed(self, ids: NDArray[np.uint32]) -> NDArray[np.generic]:
        ends = np.array([self._tokenizer.start_id, self._tokenizer.end_id], self._dtype)
        return np.concatenate([ends[:1], ids.astype(self._dtype), ends[1:]])

    def _documents(self, start: Cursor) -> Iterator[tuple[Cursor, Document | SkippedFile | None]]:
        """What comes after `start`, each with the place after it."""
        if start != self._at:
            self._stream = self._read(start)
        for at, item in self._stream:
            self._at = at
            yield at, item

    def _read(self, start: Cursor) -> Iterator[tuple[Cursor, Document | SkippedFile | None]]:
        for number in range(start.file, len(self._files)):
            done = start.document if number == start.file else 0
            seen = 0
            for item in read_file(self._files[number], self._text_field):
                if isinstance(item, SkippedFile):
                    yield Cursor(number, max(seen, done)), item
                    continue
                seen += 1
                if seen > done:
                    yield Cursor(number, seen), item
            yield Cursor(number + 1, 0), None

    def _index(self, shards: list[Shard]) -> PackedIndex:
        return PackedIndex(
            dtype=self._dtype.name,
            vocab_size=self._tokenizer.vocab_size,
            shard_tokens=[shard.tokens for shard in shards],
            documents=sum(len(shard.documents) for shard in shards),
            n_bytes=sum(document.n_bytes for shard in shards for document in shard.documents),
            empty=sum(shard.empty for shard in shards),
            duplicates=[name for shard in shards for name in shard.duplicates],
            skipped=[file for shard in shards for file in shard.skipped],
        )

    def _nothing(self, index: PackedIndex) -> DataError:
        said = [f"{file.path} {file.reason}" for file in index.skipped[:_SHOWN]]
        said += [f"{index.empty} documents are empty"] if index.empty else []
        said += [f"{len(index.duplicates)} stand in the training data too"] if index.duplicates else []
        return DataError(
            f"none of {len(self._files)} files holds a document to use: {'; '.join(said) or 'no rows'}",
            "give other files (txt, md, py, jsonl, parquet, also .gz and .zst), or name the field or column",
        )

    def _show(self, done_bytes: int) -> None:
        self._shown_bytes = max(self._shown_bytes, min(done_bytes, self._before_bytes[-1]))
        if self._on_progress is not None:
            self._on_progress(self._shown_bytes, self._before_bytes[-1])


def _file_crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHECK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One packing of a directory at a time; a second one waits, and then finds the work done."""
    directory.mkdir(parents=True, exist_ok=True)
    file = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
