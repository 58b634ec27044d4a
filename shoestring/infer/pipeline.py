"""Batch inference from Python (source: ours).

from shoestring.infer import Pipeline
result = Pipeline("photos/**/*.jpg", "labels").stage("detect.py:Detector", batch=16).run()
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from shoestring.base.clock import SystemClock
from shoestring.base.config import load_config, toml_value
from shoestring.base.errors import ConfigError, InferError, InterruptedRun
from shoestring.base.record import read_events
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.runs import dry_run, run_job
from shoestring.infer.stages.code import LOADED_AS
from shoestring.infer.trial import Trial
from shoestring.report.shard_terminal import ShardView

T = TypeVar("T")
RESULTS = (
    "rows", "failed", "errors", "not_numbers", "skipped", "first_skipped", "rows_per_s", "took_s",
    "lost_rows",
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came of a pipeline.

    Attributes:
        rows: in the output, `failed` of them with an error.
        output: where it is.
        run_dir: of the run, with its record; None where all was done before, by a run that is not at hand.
        errors: kind -> rows.
        not_numbers: column -> values that are NaN.
        skipped: files that are left out, as they cannot be read; `first_skipped`: `file` and `reason` of a
            few of them.
        rows_per_s, took_s: of the job, in seconds that somebody worked on it; 0 where `run_dir` is None.
        lost_rows: that were worked on again, as a worker was lost with them; 0 where `run_dir` is None.
    """

    rows: int
    failed: int
    output: str
    run_dir: Path | None
    errors: Mapping[str, int] = field(default_factory=dict)
    not_numbers: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0
    first_skipped: Sequence[Mapping[str, str]] = ()
    rows_per_s: float = 0.0
    took_s: float = 0.0
    lost_rows: int = 0


class Pipeline:
    """Rows of a source through stages into a sink; each row exactly once, whatever dies.

    Run again, it goes on where it was; once it is finished, it does nothing.

    Args:
        source: files to read: globs, folders or URLs.
        sink: folder or URL for the output.
        name: of the run; empty: one is made up.
        runs_dir: where runs are kept.
        settings: any other settings of a job by their dotted names: `{"sink.format": "jsonl"}`.
    """

    def __init__(
        self,
        source: str | Path | Sequence[str | Path],
        sink: str | Path,
        name: str = "",
        runs_dir: str | Path = "runs",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        files = [source] if isinstance(source, str | Path) else list(source)
        self._files = tuple(str(one) for one in files)
        self._sink = str(sink)
        self._name = name
        self._runs_dir = Path(runs_dir)
        self._settings = dict(settings or {})
        self._stages: list[StageConfig] = []

    def stage(
        self,
        uses: Any,
        name: str = "",
        batch: int = 0,
        after: str = "",
        processes: int = 0,
        device: str = "",
        keep: bool | None = None,
        columns: Sequence[str] = (),
        kind: str = "auto",
        max_wait_s: float = 0.2,
        device_share: float = 1.0,
        memory_bytes: int = 0,
        hang_s: float = 0.0,
        **options: Any,
    ) -> Pipeline:
        """Add a stage; returns the pipeline.

        Args:
            uses: a class or function that its module has by name, `module:Class`, `file.py:Class`, or the
                path of a model.
            name, batch, after, processes, device, keep, columns, kind, max_wait_s, device_share,
                memory_bytes, hang_s: as in `StageConfig`.
            options: what the class is made with.

        Raises:
            ConfigError: the class cannot be found again by other processes.
        """
        fields = {
            "uses": spec_of(uses), "name": name, "batch": batch, "after": after, "processes": processes,
            "device": device, "keep": keep, "columns": tuple(columns), "kind": kind, "options": options,
            "max_wait_s": max_wait_s, "device_share": device_share, "memory_bytes": memory_bytes,
            "hang_s": hang_s,
        }  # fmt: skip
        self._stages.append(StageConfig.model_validate(fields))
        return self

    @property
    def config(self) -> InferConfig:
        """The settings of the job.

        Raises:
            ConfigError: one is unknown or wrong.
        """
        config = InferConfig(
            source=InferConfig().source.model_copy(update={"files": self._files}),
            sink=InferConfig().sink.model_copy(update={"path": self._sink}),
            stages=tuple(self._stages),
        )
        return load_config(
            config, (), tuple(f"{key}={toml_value(value)}" for key, value in self._settings.items())
        )

    def dry_run(self, quiet: bool = True) -> Trial:
        """Try a few rows: what each part costs, what to expect. Nothing is written.

        Raises:
            ConfigError, DataError, InferError: a setting, the source or a stage is wrong.
        """
        _not_in_a_stage()
        with ShardView(quiet=quiet) as view:
            return dry_run(self.config, SystemClock(), view)

    def run(self, quiet: bool = True) -> Result:
        """Run the job to its end, or go on with it.

        Args:
            quiet: show nothing while it goes on.

        Raises:
            ConfigError, DataError, SinkError: a setting, the source or the sink is wrong.
            InferError: the job has failed.
            InterruptedRun: by the user; run it again to go on.
        """
        _not_in_a_stage()
        with ShardView(quiet=quiet) as view:
            ended = run_job(self.config, "infer", self._name, self._runs_dir, SystemClock(), view)
        outcome = ended.outcome
        if outcome.status == "interrupted":
            raise InterruptedRun("the job was interrupted", "run it again to go on")
        if outcome.status != "finished":
            raise InferError(outcome.error, outcome.todo)
        facts = dict(ended.facts)
        if ended.run_dir is not None:
            facts = read_events(ended.run_dir / "events.jsonl").of("result")[-1]
        # The manifest of a run that is not at hand says nothing of time.
        known = {name: facts[name] for name in RESULTS if name in facts}
        return Result(output=self._sink, run_dir=ended.run_dir, **known)


def spec_of(uses: Any) -> str:
    """A stage as other processes find it: `module:Name` or `file.py:Name`; texts and paths as they are.

    Raises:
        ConfigError: they cannot.
    """
    if isinstance(uses, str | Path):
        return str(uses)
    if not (inspect.isclass(uses) or inspect.isfunction(uses)):
        raise ConfigError(
            f"a stage is a class or a function, and {uses!r} is a {type(uses).__name__}",
            "give the class itself, and its arguments as options",
        )
    module, name = uses.__module__, uses.__qualname__
    if "<" in name or "." in name:
        raise ConfigError(
            f"other processes cannot find {module}.{name}: it is not at the top of its module",
            "define it at the top of a file, and give the class, or 'FILE.py:CLASS'",
        )
    if module == "__main__":
        file = vars(sys.modules["__main__"]).get("__file__")
        if not file:
            raise ConfigError(
                f"other processes cannot find {name}: it was typed, and is in no file",
                "write it into a file, and give 'FILE.py:CLASS'",
            )
        return f"{Path(file).absolute()}:{name}"
    if vars(importlib.import_module(module)).get(name) is not uses:
        raise ConfigError(
            f"{module} has another {name} by now", "give the class that its module has, or 'FILE.py:CLASS'"
        )
    return f"{module}:{name}"


def _not_in_a_stage() -> None:
    """Whoever loads a script for its stages must not start its job again."""
    script = inspect.currentframe()
    while script is not None:
        if str(script.f_globals["__name__"]).startswith(LOADED_AS):
            raise ConfigError(
                "the script starts its pipeline while a stage is loaded from it",
                "put the part that runs under: if __name__ == '__main__':",
            )
        script = script.f_back
