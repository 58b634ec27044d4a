"""`shoestring infer`, and what other commands do for its runs."""

from __future__ import annotations

from pathlib import Path

from shoestring.base.clock import SystemClock
from shoestring.base.config import load_config, read_toml
from shoestring.base.errors import ConfigError
from shoestring.commands.common import INFER, print_json
from shoestring.commands.ending import conclude
from shoestring.fleet.rundirs import About
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.runs import Ended, dry_run, run_job
from shoestring.infer.runs import resume as resume_job
from shoestring.report.shard_terminal import ShardView


def infer(
    job: Path | None,
    source: tuple[str, ...],
    stage: tuple[str, ...],
    output: str,
    sets: tuple[str, ...],
    toml_files: tuple[Path, ...],
    name: str,
    runs_dir: Path,
    dry: bool,
    as_json: bool,
) -> int:
    """Run a model over data; returns the exit code.

    Args:
        job: a TOML file with the settings.
        source, stage, output: what is in `source.files`, `stages`, `sink.path`, laid over the file's.
        dry: only try a few rows, and say what to expect.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    config = job_config(job, source, stage, output, sets, toml_files)
    clock = SystemClock()
    with ShardView(quiet=as_json) as view:
        if dry:
            trial = dry_run(config, clock, view)
            if as_json:
                print_json({"status": "tried", "trial": trial.facts})
            return 0
        recipe = job.stem if job is not None and job.stem.isidentifier() else INFER
        ended = run_job(config, recipe, name, runs_dir, clock, view)
    return _conclude(ended, config, as_json)


def job_config(
    job: Path | None,
    source: tuple[str, ...],
    stage: tuple[str, ...],
    output: str,
    sets: tuple[str, ...],
    toml_files: tuple[Path, ...],
) -> InferConfig:
    """The settings of a job: the file's, then those of `--config`, the command line's words, `--set`.

    Raises:
        ConfigError: a setting is unknown or wrong, or the file is of another kind of job.
    """
    files = (*((job,) if job is not None else ()), *toml_files)
    for path in files:
        settings = read_toml(path)
        if "job" in settings and settings["job"] != INFER:
            raise ConfigError(
                f"{path} is of a job {settings['job']!r}",
                "start it with: shoestring run RECIPE --config FILE",
            )
    config = load_config(InferConfig(), files, ())
    if source:
        config = config.model_copy(update={"source": config.source.model_copy(update={"files": source})})
    if stage:
        config = config.model_copy(update={"stages": tuple(StageConfig(uses=one) for one in stage)})
    if output:
        config = config.model_copy(update={"sink": config.sink.model_copy(update={"path": output})})
    return load_config(config, (), sets)


def resume(
    run_dir: Path, about: About, toml_files: tuple[Path, ...], sets: tuple[str, ...], as_json: bool
) -> int:
    """Go on with a job that was begun; returns the exit code."""
    config = load_config(InferConfig(), (run_dir / "config.toml", *toml_files), sets)
    with ShardView(quiet=as_json) as view:
        view.begin(run_dir.name)
        view.say(f"resuming {run_dir.name}")
        outcome = resume_job(config, about, run_dir, SystemClock(), view)
    return _conclude(Ended(run_dir, outcome), config, as_json)


def _conclude(ended: Ended, config: InferConfig, as_json: bool) -> int:
    resumes = ended.outcome.status != "finished"
    made = {"output": config.sink.path}
    return conclude(ended.run_dir, ended.outcome, made, as_json, resumes, facts=ended.facts)
