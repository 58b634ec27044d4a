"""What stands in a sink beside its rows: whose it is, the manifest; and whether it can be written.

Source: ours.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Literal, TypeVar

import msgspec

from shoestring.base.errors import SinkError, without_passwords
from shoestring.data.output_state import Output, Ranges, add_counts
from shoestring.data.sink_config import SinkConfig
from shoestring.data.sink_files import Files, files_of_sink

MANIFEST = "_manifest.json"
"""Parquet readers pass over names that begin with `_` or `.`."""
IMAGES = "_images"
SCHEMA = "schema.json"
SUFFIXES = {"parquet": ".parquet", "jsonl": ".jsonl", "csv": ".csv", "text": ".txt", "images": ".parquet"}
T = TypeVar("T")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class FileEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file of the output; see `Staged` for its numbers."""

    name: str
    rows: int
    ranges: Ranges
    size_bytes: int
    sha256: str
    failed: int = 0
    errors: dict[str, int] = {}
    not_numbers: dict[str, int] = {}
    facts: dict[str, str] = {}


class Manifest(msgspec.Struct):
    """What the output is made of. While the job runs it may lag behind the files.

    Attributes:
        job: the job's token: nobody else writes here.
        rows, failed, errors, not_numbers: of all files together.
        columns: name -> type.
        facts: of the job, at its end.
    """

    job: str
    state: Literal["running", "finished"] = "running"
    format: str = "parquet"
    version: int = 1
    rows: int = 0
    failed: int = 0
    errors: dict[str, int] = {}
    not_numbers: dict[str, int] = {}
    columns: dict[str, str] = {}
    facts: dict[str, Any] = {}
    files: list[FileEntry] = []


class Owner(msgspec.Struct, frozen=True):
    """Whose a sink is: the token of a job, whether that is through (`state`), and what it told at its end."""

    job: str
    state: str = "running"
    facts: dict[str, Any] = {}

    @property
    def complete(self) -> bool:
        """Whether all of the job's output is there."""
        return self.state == "finished"


def owner_of(sink: SinkConfig) -> Owner | None:
    """Whose output is in a sink; None: nobody's.

    Raises:
        SinkError: it cannot be read, or its manifest is damaged or not ours.
    """
    return _read(files_of_sink(sink.path), sink.path, Owner)


def check_sink(sink: SinkConfig) -> None:
    """Make the folder, and see that files can be written there, renamed and removed.

    Raises:
        SinkError: they cannot, with what to do.
    """
    files = files_of_sink(sink.path)
    files.make()
    probe = f".probe-{secrets.token_hex(4)}"
    stream = files.create(probe)
    try:
        with files.telling(), stream:
            stream.write(b"can this be written?")
        files.move(probe, f"{probe}.moved")
    finally:
        files.remove(probe)
        files.remove(f"{probe}.moved")
    _read(files, sink.path, Owner)


def read_manifest(files: Files, where: str) -> Manifest | None:
    """What the manifest says; None: there is none.

    Raises:
        SinkError: it is damaged or not ours.
    """
    return _read(files, where, Manifest)


def entry_of(output: Output) -> FileEntry:
    """A published file, for the manifest."""
    staged = output.staged
    return FileEntry(
        output.name, staged.rows, output.ranges, staged.size_bytes, staged.sha256, staged.failed,
        staged.errors, staged.not_numbers, staged.facts,
    )  # fmt: skip


def encode_manifest(manifest: Manifest) -> bytes:
    """As JSON, a file a line."""
    manifest.rows = sum(entry.rows for entry in manifest.files)
    manifest.failed = sum(entry.failed for entry in manifest.files)
    manifest.errors, manifest.not_numbers = {}, {}
    for entry in manifest.files:
        add_counts(manifest.errors, entry.errors)
        add_counts(manifest.not_numbers, entry.not_numbers)
    fields = msgspec.to_builtins(manifest)
    files = fields.pop("files")
    head = ",\n".join(f"{_json(key)}: {_json(value)}" for key, value in fields.items())
    lines = ",\n".join(_json(entry) for entry in files)
    return f'{{{head},\n"files": [\n{lines}\n]}}\n'.encode()


def staging_folder(job: str) -> str:
    """Of a job, within its sink; readers pass over it."""
    return f".staging-{safe(job)}"


def safe(text: str) -> str:
    """A text as a part of a file's name."""
    return _UNSAFE.sub("_", text)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _read(files: Files, where: str, kind: type[T]) -> T | None:
    data = files.read(MANIFEST)
    try:
        return msgspec.json.decode(data, type=kind) if data is not None else None
    except msgspec.DecodeError as error:
        raise SinkError(
            f"{without_passwords(where)}/{MANIFEST} is damaged, or not the manifest of a job: {error}",
            "choose another folder (sink.path), or remove it if what is in there is not needed",
        ) from error
