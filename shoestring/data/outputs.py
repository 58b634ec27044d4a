"""The output of a job, each shard's exactly once: staged aside, committed with the ledger, then renamed.

1. A worker writes a shard's rows into a file of the staging folder and makes it durable (`Staging`).
2. The coordinator commits what it was told of the file (`Output`) in the transaction that says `done` of
   its rows.
3. Only then the file is renamed to its final name (`Outputs.publish`). Whoever dies between 2 and 3 leaves
   that to `Outputs.open`; whoever dies before 2 has left a file that nobody knows: the rows are done again.

So the folder holds whole files of committed rows at any time, and nothing else that a reader of Parquet
data sets looks at. `_manifest.json` says what there is; the ledger is the truth. Source: ours.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import IO, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from shoestring.base.errors import SinkError
from shoestring.data.folders import Folder, cannot_write, folder_of
from shoestring.data.output_state import Output, Staged
from shoestring.data.row_types import as_type
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_formats import ERROR, SUFFIXES, open_writer, output_schema
from shoestring.data.sinks import MANIFEST, Manifest, read_manifest

PART = "part-"
IMAGES = "_images-"
"""Begin of the names of folders of images: readers of data sets pass over what begins with `_`."""
MANIFEST_EVERY = 256
"""Files that are published between two writings of the manifest."""
KINDS, KIND_CHARS = 50, 60
OTHER = "other errors"
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+")


class Staging:
    """A worker's side: files that nobody reads yet.

    Args:
        job: the job's token; what is staged lies in a folder of its name.

    Raises (every call):
        SinkError: the sink cannot be written.
    """

    def __init__(self, sink: SinkConfig, job: str, folder: Folder | None = None) -> None:
        self._sink = sink
        self._folder = folder or folder_of(sink.path)
        self._aside = staging_folder(job)
        self._made = False

    def writer(self, lease_id: int, who: str, schema: pa.Schema) -> StagedWriter:
        """Begin a shard's file.

        Args:
            who: the process, a name that no other one has; part of the file's name.
            schema: of the tables to come, with the columns `row` and `error`.
        """
        if not self._made:
            self._folder.make(self._aside)
            self._made = True
        name = f"{who}-{lease_id:06d}{SUFFIXES[self._sink.format]}"
        return StagedWriter(self._folder, self._aside, name, image_folder(lease_id), self._sink, schema)

    def discard(self, staged: Staged) -> None:
        """A staged file that came too late is not needed."""
        self._folder.remove(f"{self._aside}/{staged.name}")
        if images := staged.facts.get("images"):
            self._folder.remove(f"{self._aside}/{staged.name}.{images}")


class StagedWriter:
    """One shard's file. See `Staging.writer`.

    Values that do not fit the schema cost their own row its values (it gets an error), nobody else's.
    """

    def __init__(
        self, folder: Folder, aside: str, name: str, images: str, sink: SinkConfig, schema: pa.Schema
    ) -> None:
        self._folder, self._name, self._path = folder, name, f"{aside}/{name}"
        self._images, self._image_path, self._has_images = images, f"{aside}/{name}.{images}", False
        self._schema = schema
        kept = output_schema(sink, schema)
        self._numbers = [one.name for one in kept if _floats(one.type)]
        self._tally = _Tally()
        self._stream = _Hashed(folder.create(self._path))
        self._writer = open_writer(sink, self._stream, schema, self._beside)  # type: ignore[arg-type]

    def write(self, table: pa.Table) -> None:
        """More rows, in order."""
        table = conformed_rows(table, self._schema)
        self._tally.add(table, self._numbers)
        try:
            self._writer.write(table)
        except OSError as error:
            raise cannot_write("its place", error) from error

    def close(self) -> Staged:
        """No more rows: the file is durable on return."""
        try:
            self._writer.finish()
        except OSError as error:
            raise cannot_write("its place", error) from error
        self._folder.settle(self._path, self._stream.inner)
        told = self._tally
        return Staged(
            self._name, told.rows, told.failed, self._stream.size_bytes, self._stream.sha256, told.kinds(),
            dict(told.not_numbers), {"images": self._images} if self._has_images else {},
        )  # fmt: skip

    def abort(self) -> None:
        """Remove what was written."""
        self._stream.inner.close()
        self._folder.remove(self._path)
        self._folder.remove(self._image_path)

    def _beside(self, name: str, data: bytes) -> str:
        if not self._has_images:
            self._folder.remove(self._image_path)  # of one who has died here before
            self._folder.make(self._image_path)
            self._has_images = True
        path = f"{self._image_path}/{name}"
        stream = self._folder.create(path)
        try:
            stream.write(data)
        except OSError as error:
            stream.close()
            raise cannot_write("its place", error) from error
        self._folder.settle(path, stream)
        return f"{self._images}/{name}"


class Outputs:
    """The coordinator's side: makes committed output visible.

    Args:
        job: the job's token.

    Raises (every call):
        SinkError: the sink cannot be written, holds something else, or has lost a file.
    """

    def __init__(self, sink: SinkConfig, job: str, folder: Folder | None = None) -> None:
        self._sink = sink
        self._job = job
        self._folder = folder or folder_of(sink.path)
        self._aside = staging_folder(job)
        self._published: dict[str, Output] = {}
        self._told = 0

    def open(self, committed: Iterable[Output], alone: bool = False) -> list[str]:
        """Take over: publish what is committed and was not published yet.

        Args:
            alone: nobody stages anything now, so what is staged and not committed can go.

        Returns:
            What was done, in words.

        Raises:
            SinkError: also where the folder belongs to another job, or has files of ours that nobody knows.
        """
        self._folder.make()
        outputs = list(committed)
        owner = read_manifest(self._folder)
        if owner is not None and owner.job != self._job:
            raise self._foreign("the output of another job")
        known = {output.name for output in outputs}
        unknown = [n for n in self._folder.names() if n.startswith(PART) and n not in known]
        if unknown:
            raise self._foreign(f"{unknown[0]}, which this job's ledger does not know")
        late = [one for one in outputs if self._put(one)]
        done = [f"{len(late)} files were committed and are published now"] if late else []
        if alone and (left := self._folder.names(self._aside)):
            self._folder.remove(self._aside)
            done.append(f"{len(left)} files that were staged and not committed are removed")
        self._tell("running")
        return done

    def publish(self, output: Output) -> None:
        """Rename a committed file to its final name; again changes nothing.

        Raises:
            SinkError: also where it is gone or has another size.
        """
        self._put(output)
        if len(self._published) >= self._told + MANIFEST_EVERY:
            self._tell("running")

    def finish(self, facts: dict[str, Any]) -> None:
        """All is published: the manifest says so."""
        self._tell("finished", facts)
        self._folder.remove(self._aside)

    def _put(self, output: Output) -> bool:
        """Whether it was not published yet."""
        staged, source = output.staged, f"{self._aside}/{output.staged.name}"
        self._published[output.name] = output
        moved = False
        if images := staged.facts.get("images"):
            moved = self._move(f"{source}.{images}", images, 0)
        return self._move(source, output.name, staged.size_bytes) or moved

    def _move(self, source: str, target: str, size_bytes: int) -> bool:
        there, here = self._folder.size(target), self._folder.size(source)
        if there == size_bytes and here is None:
            return False
        if here == size_bytes:
            self._folder.move(source, target)
            return True
        found = f"{there} bytes of it" if there is not None else "it is gone"
        raise SinkError(
            f"{target} was staged with {size_bytes} bytes, and {found}",
            "somebody has changed the output while the job was running; start it again with another folder",
        )

    def _tell(self, state: str, facts: dict[str, Any] | None = None) -> None:
        self._told = len(self._published)
        files = [self._published[name] for name in sorted(self._published)]
        manifest = Manifest(self._job, state, self._sink.format, files, facts or {})
        self._folder.put(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))

    def _foreign(self, what: str) -> SinkError:
        return SinkError(
            f"{self._sink.path} holds {what}", "choose another folder for the output, or remove what is in it"
        )


def staging_folder(job: str) -> str:
    """Where a job stages: readers of data sets pass over names that begin with a dot."""
    return f".staging-{job}"


def image_folder(lease_id: int) -> str:
    """Of the images of a shard."""
    return f"{IMAGES}{lease_id:06d}"


def conformed_rows(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table as the schema has it; rows with a value that does not fit have nulls, and an error.

    Example: a text among numbers.
    """
    if table.schema.equals(schema):
        return table
    columns: dict[str, Any] = {}
    bad: dict[int, str] = {}
    for one in schema:
        column = table.column(one.name) if one.name in table.schema.names else pa.nulls(table.num_rows)
        try:
            columns[one.name] = column.cast(one.type)
        except (pa.lib.ArrowException, ValueError):
            columns[one.name] = _row_by_row(column, one, bad)
    if bad:
        fits = pa.array([place not in bad for place in range(table.num_rows)])
        for one in schema:
            if one.name not in (ERROR, "row") and one.name in table.schema.names:
                columns[one.name] = pc.if_else(fits, columns[one.name], pa.scalar(None, one.type))
        said = columns[ERROR].to_pylist()
        columns[ERROR] = pa.array(
            [text or bad.get(i) for i, text in enumerate(said)], schema.field(ERROR).type
        )
    return pa.table([columns[one.name] for one in schema], schema=schema)


def _row_by_row(column: Any, field: pa.Field, bad: dict[int, str]) -> pa.Array:
    values: list[Any] = []
    for place, value in enumerate(column.to_pylist()):
        try:
            values.append(_fitted(value, field.type))
        except (pa.lib.ArrowException, ValueError, TypeError, AttributeError, OverflowError):
            values.append(None)
            bad.setdefault(place, f"sink: does not fit column {field.name} ({field.type}): {value!r:.40}")
    return pa.array(values, field.type)


def _fitted(value: Any, kind: pa.DataType) -> Any:
    """A value as a column of this type takes it, or as Arrow casts it."""
    try:
        return pa.array([as_type(value, kind)], kind)[0].as_py()
    except (pa.lib.ArrowException, ValueError, TypeError, AttributeError):
        return pa.array([value]).cast(kind)[0].as_py()


class _Tally:
    """What is counted of the rows of a file."""

    def __init__(self) -> None:
        self.rows = self.failed = 0
        self.not_numbers: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()

    def add(self, table: pa.Table, numbers: list[str]) -> None:
        self.rows += table.num_rows
        errors = table.column(ERROR)
        if errors.null_count < len(errors):
            texts = errors.drop_null().to_pylist()
            self.failed += len(texts)
            self._errors.update(kind_of(text) for text in texts)
        for name in numbers:
            values = table.column(name)
            while _listed(values.type):
                values = pc.list_flatten(values)
            if isinstance(values.type, pa.ExtensionType):
                continue
            if count := pc.sum(pc.is_nan(values)).as_py():
                self.not_numbers[name] += count

    def kinds(self) -> dict[str, int]:
        common = self._errors.most_common(KINDS)
        rest = sum(self._errors.values()) - sum(count for _, count in common)
        return dict(common) | ({OTHER: rest} if rest else {})


def kind_of(text: str) -> str:
    """The kind of an error: the begin of its text, whatever numbers are in it.

    Example: `decode: ValueError: row 17 is empty` is `decode: ValueError`.
    """
    parts = (text.splitlines() or [""])[0].split(": ")
    return _NUMBER.sub("N", ": ".join(parts[:2]))[:KIND_CHARS]


def _floats(kind: pa.DataType) -> bool:
    while _listed(kind):
        kind = kind.value_type
    return bool(pa.types.is_floating(kind))


def _listed(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


class _Hashed:
    """A stream that counts and hashes what goes through it."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner
        self.size_bytes = 0
        self._sha = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._sha.hexdigest()

    @property
    def closed(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.inner.write(view)
        self._sha.update(view)
        self.size_bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Done once, at the end."""

    def tell(self) -> int:
        return self.size_bytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The folder settles it."""
