"""Starts, resumes and ends a batch inference job: its directory, its record, its fleet (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.config import to_toml
from shoestring.base.errors import ConfigError, RunError, SinkError, without_passwords
from shoestring.base.record import RunRecord, read_events
from shoestring.base.units import format_count, format_duration
from shoestring.cluster.topology import usable_cores, usable_memory_bytes
from shoestring.data.ledger import LedgerSpec
from shoestring.data.row_index import RowIndex
from shoestring.data.sinks import check_sink, owner_of
from shoestring.data.stores import SqlStore
from shoestring.fleet.launch import Launch, Outcome
from shoestring.fleet.messages import Status
from shoestring.fleet.outputs_spec import OutputsSpec
from shoestring.fleet.rundirs import ABOUT, About, find_run, new_run_dir
from shoestring.fleet.runlog import facts_of, recorded
from shoestring.fleet.supervisor import Interrupts
from shoestring.fleet.transports import run_on
from shoestring.infer import kept
from shoestring.infer.config import InferConfig
from shoestring.infer.expect import shard_rows
from shoestring.infer.graph import Graph
from shoestring.infer.placement import workers_here
from shoestring.infer.rehearsal import Rehearsal
from shoestring.infer.settle import settled
from shoestring.infer.stages import check_stage
from shoestring.infer.trial import SHOWN_FILES, Trial, columns, left_out, run_trial, tell, warn_left_out
from shoestring.infer.wire import InferPayload
from shoestring.infer.worker import ENTRY

PACKAGES = ("numpy", "pyarrow", "pydantic", "msgspec", "sqlalchemy")
LEASE_S = 3600.0
"""Of a shard whose holder is not heard any more; heartbeats find lost workers long before."""
SHOWN_KINDS = 5


class View(Protocol):
    """Where a job shows itself while it goes on."""

    def say(self, text: str) -> None:
        """One line for a person."""
        ...

    def status(self, status: Status) -> None:
        """The state of the fleet, several times a second."""
        ...

    def begin(self, name: str) -> None:
        """The name of the run is known."""
        ...


@dataclass(frozen=True)
class Ended:
    """How a job ended; `run_dir` is None where all was done before, by a run that is not at hand: then
    `facts` are those of the output's manifest."""

    run_dir: Path | None
    outcome: Outcome
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked:
    """A job whose settings make sense: its rows, its stages."""

    config: InferConfig
    index: RowIndex
    graph: Graph


def check(config: InferConfig, say: Callable[[str], None], index: RowIndex | None = None) -> Checked:
    """Look at all that can be looked at without a model: the source, the stages, how they fit.

    Args:
        index: of the rows; made when not given, which looks through all files.

    Raises:
        ConfigError, DataError, InferError: it cannot be run like that.
    """
    if not config.source.files:
        raise ConfigError("the job has no source", "name its files: --source 'data/*.parquet'")
    if config.fleet.transport == "inprocess":
        raise ConfigError(
            "a batch inference job has processes of its own, and fleet.transport is inprocess",
            "leave fleet.transport out, or set it to local or ray",
        )
    for stage in config.stages:
        check_stage(stage)
    if index is None:
        index = RowIndex.build(config.source, say)
        for url, why in index.skipped[:SHOWN_FILES]:
            say(f"left out: {without_passwords(f'{url}: {why}')}")
        if len(index.skipped) > SHOWN_FILES:
            say(f"and {len(index.skipped) - SHOWN_FILES} more files that cannot be read")
    return Checked(config, index, Graph.of(config, index.schema))


def dry_run(config: InferConfig, clock: Clock, view: View) -> Trial:
    """The trial alone: nothing is written.

    Raises:
        ConfigError, DataError, InferError: as `check`, or the trial failed.
    """
    job = check(settled(config), view.say)
    trial = _try(job, clock, view.say)
    tell(trial, view.say)
    return trial


def run_job(config: InferConfig, recipe: str, name: str, runs_dir: Path, clock: Clock, view: View) -> Ended:
    """Run a job, or go on with it where the same job was begun before; one that is finished stays as it is.

    Args:
        name: of the run; empty: one is made up from `recipe`.

    Raises:
        ConfigError, DataError, SinkError, InferError, FleetError: it could not be started, or has failed
            before its first shard; RunError: the name is another job's.
    """
    config = settled(config)
    if config.source.files and not config.sink.path:
        raise ConfigError("the job has no place for its output", "name a folder: --output DIR")
    job = check(config, view.say)
    fingerprint = kept.job_fingerprint(config, job.index)
    owner = owner_of(config.sink)
    if owner is not None and not kept.same_job(owner.job, fingerprint):
        raise SinkError(
            f"{config.sink.path} holds the output of another job (other rows, models, stages or options)",
            "choose another --output; or go on with that job: shoestring resume NAME",
        )
    run_dir = kept.find_by_token(runs_dir, owner.job) if owner is not None else None
    if owner is not None and run_dir is None:
        if owner.complete:
            view.say(f"this job is finished already; its output is in {config.sink.path}")
            return Ended(None, Outcome("finished"), dict(owner.facts) | left_out(job.index.skipped))
        raise RunError(
            f"{config.sink.path} holds part of this job's output, of a run that is not in {runs_dir}",
            "name the directory of that run's runs (--runs-dir), or choose another --output",
        )
    run_dir = run_dir or _namesake(runs_dir, name, fingerprint)
    if run_dir is not None:
        view.begin(run_dir.name)
        view.say(f"this job was begun as {run_dir.name}")
        return Ended(run_dir, _again(job, find_run(run_dir.parent, run_dir.name)[1], run_dir, clock, view))
    run_dir = new_run_dir(runs_dir, recipe, name, clock)
    view.begin(run_dir.name)
    view.say(f"run {run_dir.name} in {run_dir}")
    return Ended(run_dir, start(job, recipe, run_dir, clock, view))


def start(job: Checked, recipe: str, run_dir: Path, clock: Clock, view: View) -> Outcome:
    """Run a job from the beginning in a fresh directory.

    Raises:
        as `run_job`.
    """
    about = About(run_dir.name, recipe, job.config.job, clock.wall())
    job.index.save(run_dir / kept.INDEX)
    settings = run_dir / "config.toml"
    text = to_toml(job.config)
    if without_passwords(text) != text:
        settings.touch(mode=0o600)  # a resume needs the password, nobody else does
    settings.write_text(text)
    fingerprint = kept.job_fingerprint(job.config, job.index)
    source = kept.source_fingerprint(job.config, job.index)
    kept.write_identity(run_dir, kept.Identity(kept.token_of(about, fingerprint), source, fingerprint))
    (run_dir / ABOUT).write_bytes(msgspec.json.encode(about))
    return _go(job, about, run_dir, clock, view, resumed=False)


def resume(config: InferConfig, about: About, run_dir: Path, clock: Clock, view: View) -> Outcome:
    """Go on with a job that was interrupted, failed or killed; one that is finished stays as it is.

    Raises:
        as `run_job`; RunError: its directory is damaged.
    """
    if not (run_dir / kept.INDEX).exists():
        raise RunError(f"{run_dir} has lost its index of rows", "start the job again under another name")
    job = check(settled(config), view.say, RowIndex.load(run_dir / kept.INDEX))
    return _again(job, about, run_dir, clock, view)


def finished(run_dir: Path) -> bool:
    """Whether the record of a run says that it is."""
    log = run_dir / "events.jsonl"
    ends = read_events(log).of("run", "end") if log.exists() else []
    return bool(ends) and ends[-1]["kind"] == "end" and ends[-1]["status"] == "finished"


# --- inside ------------------------------------------------------------------------------------------


def _again(job: Checked, about: About, run_dir: Path, clock: Clock, view: View) -> Outcome:
    if not finished(run_dir):
        return _go(job, about, run_dir, clock, view, resumed=True)
    owner, identity = owner_of(job.config.sink), kept.read_identity(run_dir)
    if owner is None or identity is None or owner.job != identity.token:
        raise SinkError(
            f"{run_dir.name} is finished, but its output is not in {job.config.sink.path} any more",
            "start the job again under another --name",
        )
    view.say(f"{run_dir.name} is finished already; its output is in {job.config.sink.path}")
    return Outcome("finished")


def _namesake(runs_dir: Path, name: str, fingerprint: str) -> Path | None:
    """The run of this name, if it is one of this job."""
    if not name or not (runs_dir / name / kept.JOB).is_file():
        return None
    identity = kept.read_identity(runs_dir / name)
    return runs_dir / name if identity is not None and kept.same_job(identity.token, fingerprint) else None


def _go(job: Checked, about: About, run_dir: Path, clock: Clock, view: View, resumed: bool) -> Outcome:
    settings = job.config.model_dump()
    facts = facts_of(about, resumed, settings, job.config.seed, PACKAGES)
    return recorded(run_dir, facts, clock, view.say, lambda record: _run(job, run_dir, clock, view, record))


def _run(job: Checked, run_dir: Path, clock: Clock, view: View, record: RunRecord) -> Outcome:
    check_sink(job.config.sink)
    identity = _unchanged(job, run_dir)
    if job.config.ledger_url:
        _check_store(job.config.ledger_url, identity.token, view, record)
    record.append("data", **_data(job.index))
    fingerprint = kept.job_fingerprint(job.config, job.index)
    earlier = kept.read_rehearsal(run_dir) if identity.job == fingerprint else None
    trial = _try(job, clock, view.say, earlier)
    _keep(trial, msgspec.structs.replace(identity, job=fingerprint), run_dir)
    record.append("trial", **trial.facts)
    tell(trial, view.say)
    memory_bytes = usable_memory_bytes() // workers_here(job.config)
    rows, why = shard_rows(
        job.config.shards, job.config.limits, trial.expected, trial.rehearsal.row_bytes, memory_bytes
    )
    record.append("plan", **_plan(trial, rows, why, job.index.rows))
    view.say(f"shards of {rows:,} rows: {why}")
    launch = _launch(job, trial, identity.token, rows, run_dir)
    with Interrupts() as interrupts:
        outcome = run_on(launch.fleet.transport, launch, clock, view.status, interrupts)
    if outcome.status == "finished":
        record.append("result", **_result(job, trial, run_dir, view))
    return outcome


def _check_store(url: str, token: str, view: View, record: RunRecord) -> None:
    """A database that is not there is told before models are loaded for the trial, not after."""

    def told(text: str) -> None:
        view.say(text)
        record.append("fault", reason=text)

    store = SqlStore(url, token, told=told)
    try:
        store.check()
    finally:
        store.close()


def _try(job: Checked, clock: Clock, say: Callable[[str], None], found: Rehearsal | None = None) -> Trial:
    stages = {name: node.config for name, node in job.graph.nodes.items()}
    if found is None:  # models are loaded now, which may take minutes
        say(f"trying {min(job.config.trial.rows, job.index.rows):,} rows through {', '.join(stages)}")
    cores = max(1.0, usable_cores() / workers_here(job.config))
    return run_trial(job.config, stages, job.index, cores, clock, found)


def _unchanged(job: Checked, run_dir: Path) -> kept.Identity:
    """Who the job is; a resume may change how it works, not what it reads and where it writes."""
    identity = kept.read_identity(run_dir)
    if identity is None:
        raise RunError(f"{run_dir} does not say which job it is of", "start the job again under another name")
    if identity.source != kept.source_fingerprint(job.config, job.index):
        raise ConfigError(
            "the source or the sink of a job cannot change once it has begun",
            "resume it without changes to source.* and sink.*, or start another job",
        )
    return identity


def _keep(trial: Trial, identity: kept.Identity, run_dir: Path) -> None:
    """What the trial found, for a resume; it must not contradict what was found when the job began."""
    found = columns(trial.rehearsal)
    if identity.columns and identity.columns != found:
        other = sorted(set(identity.columns.items()) ^ set(found.items()))
        raise ConfigError(
            f"the output would change within the job: {', '.join(f'{k} ({v})' for k, v in other[:4])}",
            "resume it with stages that make the same columns, or start another job",
        )
    kept.write_rehearsal(run_dir, trial.rehearsal)
    kept.write_identity(run_dir, msgspec.structs.replace(identity, columns=found))


def _launch(job: Checked, trial: Trial, token: str, rows: int, run_dir: Path) -> Launch:
    config, limits = job.config, job.config.limits
    workers = config.fleet.members.workers or 1
    members = config.fleet.members.model_copy(update={"workers": workers})
    transport = "local" if config.fleet.transport == "auto" else config.fleet.transport
    payload = InferPayload(
        config=trial.config.model_dump_json().encode(),
        index=str((run_dir / kept.INDEX).absolute()),
        job=token,
        schemas=trial.rehearsal.schemas,
        chunk_rows=config.shards.chunk_rows or trial.rehearsal.chunk_rows,
        batches=trial.rehearsal.batches,
        processes={part.name: part.processes for part in trial.expected.parts},
    )
    return Launch(
        run_dir=run_dir,
        fleet=config.fleet.model_copy(update={"members": members, "transport": transport}),
        ledger=LedgerSpec(
            samples=job.index.rows,
            seed=config.seed,
            shuffle="none",
            lease_s=LEASE_S,
            max_attempts=limits.max_attempts,
        ),
        entry=ENTRY,
        payload=msgspec.msgpack.encode(payload),
        ledger_url=config.ledger_url,
        outputs=OutputsSpec(
            sink=config.sink,
            job=token,
            shard_rows=rows,
            max_error_share=limits.max_error_share,
            min_errors=limits.min_errors,
            drain_s=limits.drain_s,
        ),
    )


def _plan(trial: Trial, rows: int, why: str, total: int) -> dict[str, Any]:
    expected = trial.expected
    return {
        "workers": expected.workers,
        "cores": expected.cores,
        "shard_rows": rows,
        "shards": -(-total // rows),
        "expected_rows_per_s": float(f"{expected.rows_per_s:.5g}"),
        "expected_s": float(f"{expected.total_s:.5g}"),
        "reason": f"{expected.reason}; shards of {rows} rows: {why}",
    }


def _data(index: RowIndex) -> dict[str, Any]:
    return {
        "rows": index.rows,
        "files": len(index.files),
        "source_bytes": sum(one.file.size_bytes for one in index.files),
        "columns": {field.name: str(field.type) for field in index.schema},
        "skipped": [{"file": url, "reason": why} for url, why in index.skipped],
    }


def _result(job: Checked, trial: Trial, run_dir: Path, view: View) -> dict[str, Any]:
    """What came of it, in the record and for the user."""
    summary = read_events(run_dir / "events.jsonl").of("summary")[-1]
    rows, failed, took_s = summary["rows"], summary["failed"], summary["elapsed_s"]
    rate = rows / took_s if took_s > 0 else 0.0
    view.say(
        f"{rows:,} rows in {format_duration(took_s)} ({format_count(rate)} rows/s), {failed:,} with an error"
    )
    for kind, count in sorted(summary["errors"].items(), key=lambda item: -item[1])[:SHOWN_KINDS]:
        view.say(f"  {count:,} x {kind}")
    for name, count in sorted(summary["not_numbers"].items()):
        view.say(f"  {count:,} values of {name} are NaN")
    view.say(f"output: {job.config.sink.path}")
    warn_left_out(job.index.skipped, view.say)
    return {
        "rows": rows,
        "failed": failed,
        "files": summary["shards"],
        "rows_per_s": float(f"{rate:.5g}"),
        "expected_rows_per_s": float(f"{trial.expected.rows_per_s:.5g}"),
        "took_s": took_s,
        "lost_rows": summary["lost_rows"],
        "errors": summary["errors"],
        "not_numbers": summary["not_numbers"],
        "output": job.config.sink.path,
    } | left_out(job.index.skipped)
