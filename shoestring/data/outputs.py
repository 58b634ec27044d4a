"""Exactly once: files are staged by workers, committed in the ledger, published by the coordinator.

1. A writer stages a shard's rows in one file in `<sink>/.staging-<job>/`, and makes it durable. Its name says
   which lease, which worker and which try, so nobody's files meet.
2. The coordinator commits `done` and the `Output` in one transaction of the ledger. From here on the rows
   count, and not before.
3. After the commit the file is moved to its final name. Whoever dies before that leaves it to the next
   coordinator, which moves what is committed (finish) and removes what is staged and not committed (undo).

On local and mounted file systems the move is an atomic rename, so that a reader of the folder sees each file
whole or not at all, at any time. An object store has no rename: the copy appears whole, and the staged file
goes after it; readers pass over the staging folder, whose name begins with a dot. On a store whose copies
are not atomic either, only the files that the manifest of a finished job lists, with their sizes and
checksums, are the output.

Source: ours, for the claim of AntBatchInfer that a shard is done only after its results are committed.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, BinaryIO, cast

import msgspec
import pyarrow as pa

from shoestring.base.errors import SinkError, without_passwords
from shoestring.data.fitting import fitted, with_errors
from shoestring.data.output_state import ERROR, Output, Staged
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_files import Files, UrlFiles, files_of_sink, is_part
from shoestring.data.sink_formats import RowWriter, check_schema, writer_for
from shoestring.data.sinks import (
    IMAGES,
    MANIFEST,
    SCHEMA,
    SUFFIXES,
    Manifest,
    encode_manifest,
    entry_of,
    read_manifest,
    safe,
    staging_folder,
)
from shoestring.data.tally import Tally

GROUP_ROWS = 1 << 16
GROUP_BYTES = 32 << 20
"""Small tables are gathered to row groups of either size."""
PICTURE_THREADS = 8
MANIFEST_EVERY = 256
"""Files published between two writings of the manifest; more once there are many, so that writing it does
not grow with the square of their number."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


class Staging:
    """A worker's side of a sink.

    Args:
        sink: where to.
        job: the job's token.
        files: the sink's folder, when not that of `sink`.

    Raises (every call):
        SinkError: it cannot be written.
    """

    def __init__(self, sink: SinkConfig, job: str, files: Files | None = None) -> None:
        self._sink = sink
        self._files = files if files is not None else files_of_sink(sink.path)
        self._folder = staging_folder(job)

    def writer(self, lease_id: int, who: str, schema: pa.Schema) -> StagedWriter:
        """A new file for a shard's rows.

        Args:
            who: of all workers; letters, digits, `.`, `_`, `-`.
            schema: of the job's output, the same for every file.
        """
        check_schema(self._sink, schema)
        self._files.make(self._folder)
        self._keep_schema(schema)
        return StagedWriter(self._sink, self._files, self._folder, lease_id, who, schema)

    def discard(self, staged: Staged) -> None:
        """Remove what was staged in vain; again changes nothing."""
        name = checked_name(staged.name)
        self._files.remove(f"{self._folder}/{name}")
        if self._sink.format == "images":
            self._files.remove(f"{self._folder}/{pictures_of(name)}")

    def _keep_schema(self, schema: pa.Schema) -> None:
        """For the manifest, once for all files."""
        name = f"{self._folder}/{SCHEMA}"
        if self._files.size(name) is None:
            columns = {field.name: str(field.type) for field in schema}
            if self._sink.format == "images":
                columns[self._sink.image] = "string"  # the names of their files
            self._files.replace(name, msgspec.json.encode(columns))


class StagedWriter:
    """One staged file; made by `Staging.writer`.

    Raises (every call):
        SinkError: it cannot be written, or a row does not fit and has no column for its error.
    """

    def __init__(
        self, sink: SinkConfig, files: Files, folder: str, lease_id: int, who: str, schema: pa.Schema
    ) -> None:
        self.name = f"{lease_id:06d}-{safe(who)}-{secrets.token_hex(4)}{SUFFIXES[sink.format]}"
        self._files, self._folder, self._schema = files, folder, schema
        self._tally = Tally()
        self._waiting: list[pa.Table] = []
        self._waiting_rows = self._waiting_bytes = 0
        self._pictures = _Pictures(files, f"{folder}/{pictures_of(self.name)}", lease_id)
        self._raw = files.create(f"{folder}/{self.name}")
        self._stream = _Hashed(self._raw)
        try:
            with files.telling():
                self._rows: RowWriter = writer_for(sink, schema, cast(BinaryIO, self._stream), self._pictures)
        except BaseException:
            self.abort()
            raise

    def write(self, table: pa.Table) -> None:
        """More rows, in order. Values that do not fit the schema are null, and an error of their row."""
        table = self._fitted(table)
        self._tally.add(table)
        self._waiting.append(table)
        self._waiting_rows += table.num_rows
        self._waiting_bytes += table.nbytes
        if self._waiting_rows >= GROUP_ROWS or self._waiting_bytes >= GROUP_BYTES:
            self._write()

    def close(self) -> Staged:
        """The end: the file and its name are durable when this returns."""
        self._write()
        with self._files.telling():
            self._rows.close()
        self._pictures.settle()
        self._files.settle(self._raw)
        self._files.sync(self._folder)
        facts = {"first_error": self._tally.first_error} if self._tally.first_error else {}
        if self._pictures.count:
            facts["images"] = str(self._pictures.count)
        return Staged(
            name=self.name,
            rows=self._tally.rows,
            failed=self._tally.failed,
            size_bytes=self._stream.size_bytes,
            sha256=self._stream.digest.hexdigest(),
            errors=self._tally.errors,
            not_numbers=self._tally.not_numbers,
            facts=facts,
        )

    def abort(self) -> None:
        """Remove it. What cannot be removed now goes with the staging folder, at the job's end or when it
        is resumed."""
        self._stream.dropping = True  # the writer of the format ends its file when it is let go
        for step in (self._let_go, self._remove, self._pictures.remove):
            with suppress(SinkError):  # on a full disk even closing fails, and room is made by the others
                step()

    def _let_go(self) -> None:
        with self._files.telling():
            self._raw.close()

    def _remove(self) -> None:
        self._files.remove(f"{self._folder}/{self.name}")

    def _fitted(self, table: pa.Table) -> pa.Table:
        lacking = [name for name in self._schema.names if name not in (ERROR, *table.schema.names)]
        table, errors = fitted(table, self._schema)
        place = self._schema.get_field_index(ERROR)
        if place < 0:
            if errors or lacking:
                why = next(iter(errors.values())) if errors else f"column {lacking[0]}: there is none"
                raise SinkError(f"a row does not fit the output: {why}", "report this as a bug")
            return table
        texts = table.column(place)
        if lacking:
            # A row that failed before has no values, and says why.
            why = f"column {lacking[0]}: there is none"
            errors = {at: why for at, said in enumerate(texts.to_pylist()) if said is None} | errors
        if not errors:
            return table
        return table.set_column(place, self._schema.field(place), with_errors(texts, errors))

    def _write(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_rows, self._waiting_bytes = [], 0, 0
        with self._files.telling():
            self._rows.write(table)


class Outputs:
    """The coordinator's side of a sink.

    Args:
        sink, job, files: as of Staging.

    Raises (every call):
        SinkError: it cannot be written, is another job's, or lacks what is committed.
    """

    def __init__(self, sink: SinkConfig, job: str, files: Files | None = None) -> None:
        self._sink, self._job, self._where = sink, job, without_passwords(sink.path)
        self._files = files if files is not None else files_of_sink(sink.path)
        self._folder = staging_folder(job)
        self._manifest = Manifest(job, format=sink.format)
        self._published: dict[str, Output] = {}
        self._unwritten = 0

    @property
    def remote(self) -> bool:
        """Whether each operation is a round trip to a store, which takes long."""
        return isinstance(self._files, UrlFiles)

    def open(self, committed: Iterable[Output], sweep: bool = True) -> list[str]:
        """Take over: publish what is committed and was not published, remove what is staged and not
        committed.

        Args:
            sweep: whether to remove; not while workers live that may yet report what they have staged.

        Returns:
            What was done, in words.
        """
        self._files.make()
        wanted = {output.name: output for output in committed}
        there = self._files.listed()
        self._own(there.keys() - wanted.keys())
        pictures = self._files.listed(IMAGES) if self._sink.format == "images" else {}
        late = [output for output in wanted.values() if not _is_there(output, there, pictures)]
        for output in late:
            self._move(output)
        self._published = wanted
        done = [f"{len(late)} files were committed and not published: done"] if late else []
        self._learn_columns()
        if sweep:
            left = [name for name in self._files.listed(self._folder) if name != SCHEMA]
            for name in (self._folder, *(name for name in there if is_part(name, MANIFEST))):
                self._files.remove(name)
            if left:
                done.append(f"{len(left)} files were staged and never committed: removed")
        if late or len(wanted) != len(self._manifest.files):
            self._manifest.state = "running"
            self._write()
        return done

    def publish(self, output: Output) -> None:
        """Give a committed file its final name; again changes nothing.

        A rename is not made durable one by one: where the machine loses it, the staged file is there again,
        and the next `open` renames it.
        """
        if output.name not in self._published or self._files.size(output.name) != output.staged.size_bytes:
            self._move(output)
        self._published[output.name] = output
        self._unwritten += 1
        if self._unwritten >= max(MANIFEST_EVERY, len(self._published) // 4):
            self._write()

    def finish(self, facts: dict[str, Any]) -> None:
        """All of the job is published; say so, durably."""
        self._learn_columns()
        self._manifest.state, self._manifest.facts = "finished", facts
        self._write()
        self._files.remove(self._folder)

    # --- inside ---------------------------------------------------------------------------------

    def _own(self, others: Iterable[str]) -> None:
        """Take the folder, where it is nobody's or this job's. `others`: what the ledger does not know."""
        suffix = SUFFIXES[self._sink.format]
        strangers = sorted(name for name in others if name.endswith(suffix) and name[0] not in "._")
        where = self._where
        manifest = read_manifest(self._files, where)
        if manifest is None:
            if strangers:
                raise SinkError(
                    f"{where} holds other files already ({_some(strangers)}), which readers would take for "
                    "this job's",
                    "choose another folder (sink.path), or move them away",
                )
            self._files.replace(MANIFEST, encode_manifest(self._manifest), fresh=True)
            manifest = read_manifest(self._files, where)
        if manifest is None or manifest.job != self._job:
            raise SinkError(
                f"{where} holds the output of another job",
                "choose another folder (sink.path), or remove that one if its output is not needed",
            )
        if strangers:
            raise SinkError(
                f"{where} holds files that the ledger does not know ({_some(strangers)}): they were put "
                "there by somebody else, or the ledger was set back",
                "remove them, then resume the run: rows that the ledger does not know are done again",
            )
        self._manifest = manifest

    def _move(self, output: Output) -> None:
        """From the staging folder to its final name, or find that this was done."""
        staged = f"{self._folder}/{checked_name(output.staged.name)}"
        if "images" in output.staged.facts:
            self._move_pictures(output, pictures_of(staged))
        wanted_bytes, staged_bytes = output.staged.size_bytes, self._files.size(staged)
        if staged_bytes == wanted_bytes:
            self._files.move(staged, output.name)
            return
        if self._files.size(output.name) != wanted_bytes:
            found = "is gone" if staged_bytes is None else f"has {staged_bytes} bytes, not {wanted_bytes}"
            raise SinkError(
                f"{output.name} is committed, but its file in {self._where} {found}",
                "bring the folder back as it was, then resume the run; else start the job anew in another "
                "folder",
            )

    def _move_pictures(self, output: Output, staged: str) -> None:
        """Before their file of rows: it names them."""
        final = f"{IMAGES}/{picture_folder(output.lease_id)}"
        if self._files.listed(staged):
            self._files.make(IMAGES)
            self._files.move(staged, final)
        found, wanted = len(self._files.listed(final)), int(output.staged.facts["images"])
        if found != wanted:
            raise SinkError(
                f"{found} of {wanted} images of {output.name} are in {self._where}/{final}",
                "bring the folder back as it was, then resume the run; else start the job anew in another "
                "folder",
            )

    def _learn_columns(self) -> None:
        if not self._manifest.columns:
            data = self._files.read(f"{self._folder}/{SCHEMA}")
            if data is not None:
                self._manifest.columns = msgspec.json.decode(data, type=dict[str, str])

    def _write(self) -> None:
        """The manifest, after what it lists is durable."""
        self._unwritten = 0
        self._manifest.files = [entry_of(self._published[name]) for name in sorted(self._published)]
        if self._sink.format == "images" and self._published:
            self._files.make(IMAGES)
            self._files.sync(IMAGES)
        self._files.sync()
        self._files.replace(MANIFEST, encode_manifest(self._manifest))


class _Pictures:
    """Files beside a staged file, in a folder of their own. Several are written and made durable at the same
    time, as that is mostly waiting."""

    def __init__(self, files: Files, folder: str, lease_id: int) -> None:
        self.count = 0
        self._files, self._folder = files, folder
        self._named = f"{IMAGES}/{picture_folder(lease_id)}"
        self._pool: ThreadPoolExecutor | None = None
        self._under_way: deque[Future[None]] = deque()

    def add(self, data: bytes, suffix: str) -> str:
        """See Pictures."""
        if self._pool is None:
            self._files.make(self._folder)
            self._pool = ThreadPoolExecutor(PICTURE_THREADS, "pictures")
        name = f"{self.count:08d}{safe(suffix)}"
        self.count += 1
        while len(self._under_way) >= 2 * PICTURE_THREADS:
            self._under_way.popleft().result()
        self._under_way.append(self._pool.submit(self._keep, name, data))
        return f"{self._named}/{name}"

    def settle(self) -> None:
        """All of them, and their names, are durable when this returns."""
        if self._pool is None:
            return
        while self._under_way:
            self._under_way.popleft().result()
        self._pool.shutdown()
        self._files.sync(self._folder)

    def remove(self) -> None:
        """All of them."""
        if self._pool is not None:
            self._pool.shutdown()
            self._files.remove(self._folder)

    def _keep(self, name: str, data: bytes) -> None:
        stream = self._files.create(f"{self._folder}/{name}")
        with self._files.telling():
            stream.write(data)
        self._files.settle(stream)


class _Hashed:
    """A stream that is written through, and what went through it.

    Attributes:
        dropping: from now on, what is written goes nowhere.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.closed = self.dropping = False

    def write(self, data: bytes) -> int:
        """On to the stream."""
        if self.dropping:
            return len(data)
        self.digest.update(data)
        self.size_bytes += len(data)
        return self._stream.write(data)

    def flush(self) -> None:
        """Nothing waits here."""


def checked_name(name: str) -> str:
    """A staged file's name, which came from another process.

    Raises:
        SinkError: it is no plain name.
    """
    if not _NAME.fullmatch(name):
        raise SinkError(f"{name!r} is not the name of a staged file", "report this as a bug")
    return name


def pictures_of(name: str) -> str:
    """The folder of images that belong to a staged file."""
    return name.rpartition(".")[0] + ".images"


def picture_folder(lease_id: int) -> str:
    """Of the images of a shard."""
    return f"shard-{lease_id:06d}"


def _is_there(output: Output, there: dict[str, int], pictures: dict[str, int]) -> bool:
    # Two renames: a machine that goes down may lose the one of the images alone.
    with_images = "images" not in output.staged.facts or picture_folder(output.lease_id) in pictures
    return with_images and output.name in there and there[output.name] == output.staged.size_bytes


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
