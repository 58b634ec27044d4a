"""The trial before a job: a few rows through all stages, told to the user as a table (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from shoestring.base.clock import Clock
from shoestring.base.errors import without_passwords
from shoestring.base.units import format_bytes, format_count, format_duration
from shoestring.data.row_index import RowIndex
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.expect import Expected, Part, expect
from shoestring.infer.graph import stage_names
from shoestring.infer.layout import most_of
from shoestring.infer.placement import devices_of, workers_here
from shoestring.infer.rehearsal import Rehearsal
from shoestring.infer.rehearse import rehearse

SHOWN_ERRORS = 5
SHOWN_FILES = 5
SHOWN_CHARS = 160
Cells = tuple[str, ...]


@dataclass(frozen=True)
class Trial:
    """What the trial found, and what it lets one expect.

    Attributes:
        config: of the job; stages that were given a GPU and did not use it compute on the CPU.
        skipped: (URL, reason) of files that are left out, as they cannot be read.
    """

    rehearsal: Rehearsal
    expected: Expected
    config: InferConfig
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def off_gpu(self) -> tuple[str, ...]:
        """Stages that were given a GPU without asking for it and did not use it."""
        names = stage_names(self.config.stages)
        off = [name for name, stage in zip(names, self.config.stages, strict=True) if stage.device == "cpu"]
        return tuple(name for name in off if self.rehearsal.stages[name].gpu is False)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record, and for scripts."""
        rehearsal, expected = self.rehearsal, self.expected
        return {
            "rows": rehearsal.rows,
            "took_s": round(rehearsal.took_s, 3),
            "parts": [_rounded(asdict(part)) for part in expected.parts],
            "columns": columns(rehearsal),
            "errors": rehearsal.errors,
            "off_gpu": list(self.off_gpu),
            "chunk_rows": rehearsal.chunk_rows,
            "row_bytes": round(rehearsal.row_bytes),
            "workers": expected.workers,
            "expected_rows_per_s": _digits(expected.rows_per_s),
            "expected_s": _digits(expected.total_s),
            "expected_output_bytes": round(expected.output_bytes),
            "slowest": expected.slowest,
            "reason": expected.reason,
        } | left_out(self.skipped)


def run_trial(
    config: InferConfig,
    stages: Mapping[str, StageConfig],
    index: RowIndex,
    cores: float,
    clock: Clock,
    kept: Rehearsal | None = None,
) -> Trial:
    """Try it on `trial.rows` rows.

    Args:
        stages: name -> settings, in the order of the flow.
        cores: of each worker.
        kept: what an earlier trial of the same job has found: then nothing is tried.

    Raises:
        InferError: a stage cannot be set up, or fails with all rows alike: a bug, with its traceback.
    """
    found = kept or rehearse(config, index, min(config.trial.rows, index.rows), clock, cores)
    workers = config.fleet.members.workers or 1
    # Under Ray workers are elsewhere: nobody here knows their GPUs.
    devices = () if config.fleet.transport == "ray" else devices_of(config, 0, workers_here(config))
    config = placed(config, found)
    by_name = dict(zip(stage_names(config.stages), config.stages, strict=True))
    stages = {name: by_name[name] for name in stages}
    most = {name: most_of(stage, devices) for name, stage in stages.items()}
    expected = expect(found, stages, config.pools, index.rows, cores, workers, most)
    return Trial(found, expected, config, index.skipped)


def placed(config: InferConfig, found: Rehearsal) -> InferConfig:
    """The job; a stage that may have a GPU, and did not use it, is not bounded by how many there are."""
    stages = tuple(
        stage.model_copy(update={"device": "cpu"})
        if found.stages[name].gpu is False and not stage.device
        else stage
        for name, stage in zip(stage_names(config.stages), config.stages, strict=True)
    )
    return config.model_copy(update={"stages": stages})


def columns(rehearsal: Rehearsal) -> dict[str, str]:
    """`stage.column` -> its type, of what the stages make."""
    found = {}
    for name, schema in rehearsal.schemas.items():
        for column in pa.ipc.read_schema(pa.py_buffer(schema)):
            found[f"{name}.{column.name}"] = str(column.type)
    return found


def tell(trial: Trial, say: Callable[[str], None]) -> None:
    """The table of a trial, what the output will hold, and errors that these rows had, line by line."""
    rehearsal, expected = trial.rehearsal, trial.expected
    say(f"trial: {rehearsal.rows} rows in {format_duration(rehearsal.took_s)}")
    for line in table(expected.parts):
        say(line)
    workers = f" on {expected.workers} workers" if expected.workers > 1 else ""
    if expected.rows_per_s > 0:
        say(
            f"expected: {format_count(expected.rows_per_s)} rows/s{workers}, "
            f"{format_duration(expected.total_s)} for {expected.rows:,} rows, about "
            f"{format_bytes(expected.output_bytes)} of output; {expected.reason}"
        )
    for name in trial.off_gpu:
        say(f"  stage {name} used no GPU: its processes are not bounded by GPUs (its device=cuda: they are)")
    for name, kind in columns(rehearsal).items():
        say(f"  column {name}: {kind}")
    ranked = sorted(rehearsal.errors.items(), key=lambda item: -item[1])
    for text, count in ranked[:SHOWN_ERRORS]:
        say(f"  {count} of these rows have an error: {text[:SHOWN_CHARS]}")
    if len(ranked) > SHOWN_ERRORS:
        say(f"  and {len(ranked) - SHOWN_ERRORS} other errors")
    warn_left_out(trial.skipped, say)


def left_out(skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Files that could not be read, for scripts: `skipped`, how many, and `first_skipped`, a few of them.

    Args:
        skipped: (URL, reason) of each.
    """
    first = [
        {"file": without_passwords(url), "reason": without_passwords(why)}
        for url, why in skipped[:SHOWN_FILES]
    ]
    return {"skipped": len(skipped), "first_skipped": first}


def warn_left_out(skipped: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """A line that the output lacks the rows of some files; none where it does not."""
    if skipped:
        url, why = skipped[0]
        files = "1 file is" if len(skipped) == 1 else f"{len(skipped):,} files are"
        say(f"warning: {files} left out, unreadable; the first: {without_passwords(f'{url}: {why}')}")


def table(parts: Sequence[Part]) -> list[str]:
    """The parts as lines of text, columns under one another."""
    head: Cells = ("part", "a row", "of it CPU", "items a row", "share", "processes", "busy", "batch")
    rows = [head, *(_cells(part) for part in parts)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  " + "  ".join(_placed(row, i, widths) for i in range(len(head))).rstrip() for row in rows]


def _placed(row: Cells, place: int, widths: Sequence[int]) -> str:
    return row[place].ljust(widths[place]) if place == 0 else row[place].rjust(widths[place])


def _cells(part: Part) -> Cells:
    return (
        part.name,
        format_duration(part.row_s),
        f"{part.cpu_share:.0%}",
        f"{part.items_per_row:.3g}",
        f"{part.share:.0%}",
        f"{part.processes}{' (fixed)' if part.fixed else ''}",
        f"{part.busy:.0%}",
        str(part.batch) if part.batch else "",
    )


def _rounded(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: _digits(value) if isinstance(value, float) else value for key, value in fields.items()}


def _digits(value: float) -> float:
    """Five significant digits: more was not measured."""
    return float(f"{value:.5g}")
