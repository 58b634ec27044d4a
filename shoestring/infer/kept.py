"""What the directory of a batch inference job keeps beside its ledger: who it is, its rows, its trial.

Source: ours.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import msgspec

from shoestring.base.errors import RunError
from shoestring.base.files import write_whole
from shoestring.data.row_index import RowIndex
from shoestring.fleet.rundirs import ABOUT, About
from shoestring.infer.config import InferConfig
from shoestring.infer.prepared import PREPARED
from shoestring.infer.rehearsal import Rehearsal

T = TypeVar("T")

JOB, INDEX, TRIAL = "job.json", "rows.index", "trial.bin"
SAME_STAGE = ("name", "kind", "uses", "options", "after", "keep", "columns")
"""Settings of a stage that decide about its output; the others decide how fast it comes."""
BESIDE = (".data", "_data")
"""What the name of an ONNX file's weights ends with, where they lie in a file of their own."""


class Identity(msgspec.Struct, frozen=True):
    """Who a job is.

    Attributes:
        token: marks what it stages and its output; begins with the job's fingerprint.
        source: the source's, sink's and rows' fingerprint: what cannot change once it has begun.
        job: the fingerprint of all, as it went on last: a resume may mend options of stages.
        columns: `stage.column` -> type, as the trial found them; empty: there was none yet.
    """

    token: str
    source: str
    job: str
    columns: dict[str, str] = {}


def job_fingerprint(config: InferConfig, index: RowIndex) -> str:
    """The same for the same rows through the same stages, with the same models, into the same columns."""
    stages = [
        {key: getattr(stage, key) for key in SAME_STAGE} | {"model": model_version(stage.uses)}
        for stage in config.stages
    ]
    return _digest(source_fingerprint(config, index), stages, config.seed)


def model_version(uses: str) -> list[tuple[str, int, int]]:
    """(name, bytes, time of modification in ns) of the files of a model; empty for code and names.

    Of one of our runs only its newest checkpoint: its record grows without changing the model.
    """
    path = Path(uses)
    if not uses or path.suffix == ".py":
        return []
    if (path / ABOUT).is_file():
        newest = max((path / "checkpoints").glob("step-????????"), default=path / "checkpoints")
        files = [path / PREPARED, *newest.rglob("*")]
    elif path.is_dir():
        files = [one for one in path.rglob("*") if _of_model(one.relative_to(path))]
    else:
        files = [path, *(path.with_name(path.name + end) for end in BESIDE)]
    found = []
    for one in files:
        try:
            about = one.stat()
        except OSError:  # not there, or gone since
            continue
        if S_ISREG(about.st_mode):
            found.append((one.relative_to(path.parent).as_posix(), about.st_size, about.st_mtime_ns))
    return sorted(found)


def _of_model(name: Path) -> bool:
    """No code, which may be mended within a job, and nothing hidden, as of Git."""
    return name.suffix not in (".py", ".pyc") and not any(part.startswith(".") for part in name.parts)


def source_fingerprint(config: InferConfig, index: RowIndex) -> str:
    """The same for the same rows and the same sink."""
    return _digest(index.fingerprint, config.source.model_dump(), config.sink.model_dump())


def token_of(about: About, fingerprint: str) -> str:
    """A job's token: its fingerprint, and which run of it this is."""
    return f"{fingerprint[:16]}-{_digest(about.name, about.made_wall_s)[:8]}"


def same_job(token: str, fingerprint: str) -> bool:
    """Whether a token is that of a run of a job with this fingerprint."""
    return token.partition("-")[0] == fingerprint[:16]


def write_identity(run_dir: Path, identity: Identity) -> None:
    """Keep it, whole or not at all."""
    write_whole(run_dir / JOB, msgspec.json.encode(identity))


def read_identity(run_dir: Path) -> Identity | None:
    """What was kept; None: nothing yet.

    Raises:
        RunError: it is damaged.
    """
    return _read(run_dir / JOB, msgspec.json.Decoder(Identity))


def write_rehearsal(run_dir: Path, rehearsal: Rehearsal) -> None:
    """Keep what the trial found, whole or not at all."""
    write_whole(run_dir / TRIAL, msgspec.msgpack.encode(rehearsal))


def read_rehearsal(run_dir: Path) -> Rehearsal | None:
    """What was kept; None: nothing yet.

    Raises:
        RunError: it is damaged.
    """
    return _read(run_dir / TRIAL, msgspec.msgpack.Decoder(Rehearsal))


def find_by_token(runs_dir: Path, token: str) -> Path | None:
    """The directory of the run that has a token."""
    for path in sorted(runs_dir.glob(f"*/{JOB}")):
        found = read_identity(path.parent)
        if found is not None and found.token == token:
            return path.parent
    return None


def _read(path: Path, decoder: msgspec.json.Decoder[T] | msgspec.msgpack.Decoder[T]) -> T | None:
    if not path.exists():
        return None
    try:
        return decoder.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{path} is damaged: {error}", "start the job again under another name") from error


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
