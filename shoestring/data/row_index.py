"""All rows of a source as one run of positions: which file and row each is, and reading them (source: ours).

The index is made once by looking through the files, and kept: a job that goes on counts the same rows.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
from pydantic import Field

from shoestring.base.config import Config
from shoestring.base.errors import DataError, first_line
from shoestring.base.files import write_whole
from shoestring.data.row_basics import FileRows, Read
from shoestring.data.row_cursors import Cursors
from shoestring.data.row_formats import format_of, schema_of
from shoestring.data.sources import SourceFile, files_of, version_of

THREADS = 8
"""That look through files at the same time: much of it is waiting for disks and networks."""
GONE = "the file has changed since the job began"


class RowSourceConfig(Config):
    """Rows to work on.

    Attributes:
        files: globs (`**` goes down any number of folders), folders, files or fsspec URLs. By its ending a
            file is `.parquet`, `.jsonl`, `.csv` or `.txt` (also `.gz` or `.zst`), else one row by itself.
        columns: to read; empty: all.
        max_row_bytes: a larger row is an error; of text, it is never held.
        on_bad_file: a file that cannot be read at all is left out and told (`skip`), or ends the job
            (`stop`).
    """

    files: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    max_row_bytes: int = Field(default=64 << 20, gt=0)
    on_bad_file: Literal["skip", "stop"] = "skip"


@dataclass(frozen=True)
class IndexedFile:
    """A file, what is known of it, and the position of its first row."""

    file: SourceFile
    about: FileRows
    first: int


class _Kept(msgspec.Struct):
    files: list[tuple[SourceFile, int, list[tuple[int, int]], list[str], int]]
    skipped: list[tuple[str, str]]
    schema: bytes


class RowIndex:
    """Rows by position.

    Attributes:
        files: with rows, by position.
        skipped: (URL, reason) of files that could not be read.
        schema: of all of them together.
    """

    def __init__(
        self,
        files: Sequence[tuple[SourceFile, FileRows]],
        skipped: Sequence[tuple[str, str]],
        schema: pa.Schema,
    ) -> None:
        found, first = [], 0
        for file, about in files:
            if about.rows:
                found.append(IndexedFile(file, about, first))
                first += about.rows
        self.files = tuple(found)
        self.skipped = tuple(skipped)
        self.schema = schema
        self.rows = first
        self._firsts = [one.first for one in self.files]

    # --- making and keeping ---------------------------------------------------------------------

    @classmethod
    def build(cls, config: RowSourceConfig, say: Callable[[str], None] = lambda _: None) -> RowIndex:
        """Look through all files.

        Raises:
            DataError: nothing matches, no file has rows, a column is in none of them; or a file cannot be
                read, and the settings want to know.
        """
        files = files_of(config.files)
        say(f"looking through {f'{len(files):,} files' if len(files) > 1 else files[0].name}")
        scanned: list[tuple[SourceFile, FileRows]] = []
        skipped: list[tuple[str, str]] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for file, found in zip(
                files, pool.map(lambda f: _scan(f, config.max_row_bytes), files), strict=True
            ):
                if isinstance(found, FileRows):
                    scanned.append((file, found))
                    continue
                if config.on_bad_file == "stop":
                    raise found
                skipped.append((file.url, found.what))
        made = cls(
            scanned, skipped, _chosen(schema_of([about.fields for _, about in scanned]), config.columns)
        )
        if not made.rows:
            why = f"; {len(skipped)} could not be read, the first: {skipped[0][1]}" if skipped else ""
            raise DataError(f"no row in {len(files)} files{why}", "name files that hold rows")
        return made

    def save(self, path: Path) -> None:
        """Into a file of its own, whole or not at all."""
        kept = _Kept(
            [
                (one.file, one.about.rows, list(one.about.cuts), list(one.about.fields), one.about.row_bytes)
                for one in self.files
            ],
            list(self.skipped),
            self.schema.serialize().to_pybytes(),
        )
        write_whole(path, msgspec.msgpack.encode(kept))

    @classmethod
    def load(cls, path: Path) -> RowIndex:
        """One that was saved.

        Raises:
            DataError: it is damaged.
        """
        try:
            kept = msgspec.msgpack.decode(path.read_bytes(), type=_Kept)
            schema = pa.ipc.read_schema(pa.py_buffer(kept.schema))
        except (OSError, msgspec.DecodeError, pa.lib.ArrowException) as error:
            raise DataError(f"the index {path} is damaged: {error}", "remove it: it is made again") from error
        files = [
            (file, FileRows(rows, tuple(cuts), dict.fromkeys(names, pa.null()), row_bytes))
            for file, rows, cuts, names, row_bytes in kept.files
        ]
        return cls(files, kept.skipped, schema)

    @property
    def fingerprint(self) -> str:
        """The same for the same files in the same versions."""
        lines = [
            f"{one.file.name}\t{one.file.url}\t{one.file.version}\t{one.about.rows}" for one in self.files
        ]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    # --- looking ------------------------------------------------------------------------------------

    def parts(self, start: int, stop: int) -> Iterator[tuple[IndexedFile, int, int]]:
        """Positions [start, stop) as (file, first row, one past the last)."""
        place = bisect_right(self._firsts, start) - 1
        while start < stop:
            one = self.files[place]
            end = min(stop, one.first + one.about.rows)
            yield one, start - one.first, end - one.first
            start, place = end, place + 1

    def identities(self, start: int, stop: int) -> list[str]:
        """`FILE#NUMBER` of positions [start, stop), from row 0 on: the same in every run."""
        return [
            f"{one.file.name}#{row}" for one, low, high in self.parts(start, stop) for row in range(low, high)
        ]


def read_rows(
    index: RowIndex, ranges: Iterable[tuple[int, int]], max_row_bytes: int, cursors: Cursors | None = None
) -> Read:
    """Rows of half-open ranges of positions, in their order, as one table of the index's schema.

    A file that has changed since, or cannot be read any more, costs its own rows their values, nobody else's.

    Args:
        cursors: kept from one call to the next, it spares those that go on in the same files work.

    Returns:
        The table, and errors by place in it.
    """
    tables: list[pa.Table] = []
    errors: dict[int, str] = {}
    at = 0
    own = cursors or Cursors()
    for start, stop in ranges:
        for one, low, high in index.parts(start, stop):
            table, bad = _read(index, one, low, high, max_row_bytes, own)
            tables.append(table)
            errors |= {at + place: error for place, error in bad.items()}
            at += high - low
    if cursors is None:
        own.close()
    return (pa.concat_tables(tables) if tables else index.schema.empty_table()), errors


def _read(
    index: RowIndex, one: IndexedFile, low: int, high: int, max_row_bytes: int, cursors: Cursors
) -> Read:
    why = ""
    for _ in range(2):  # a moment without its store must not cost rows
        try:
            if version_of(one.file.url) != one.file.version:
                return _nothing(index.schema, high - low, GONE)
            reader = format_of(one.file.name, cursors)
            found = reader.read(one.file, one.about, low, high, index.schema, max_row_bytes)
            # Looked at again: it may have changed while it was read.
            if version_of(one.file.url) != one.file.version:
                cursors.close()
                return _nothing(index.schema, high - low, GONE)
            return _whole(found, high - low)
        except MemoryError:
            raise
        except (DataError, OSError, pa.lib.ArrowException) as error:
            cursors.close()
            why = first_line(error)
    return _nothing(index.schema, high - low, why)


def _whole(found: Read, rows: int) -> Read:
    """As many rows as were asked for: with fewer, those of other files would take their places.

    Raises:
        DataError: there are not.
    """
    if found[0].num_rows != rows:
        raise DataError(f"{found[0].num_rows} rows where {rows} are", "start the job anew: it has changed")
    return found


def _nothing(schema: pa.Schema, count: int, why: str) -> Read:
    columns = [pa.nulls(count, one.type) for one in schema]
    return pa.table(columns, schema=schema), dict.fromkeys(range(count), why)


def _scan(file: SourceFile, max_row_bytes: int) -> FileRows | DataError:
    try:
        return format_of(file.name).scan(file, max_row_bytes)
    except DataError as error:
        return error


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise DataError(
            f"no file has a column {missing[0]!r}", f"choose from: {', '.join(schema.names) or 'none'}"
        )
    return pa.schema([schema.field(name) for name in columns]) if columns else schema
