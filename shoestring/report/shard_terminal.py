"""A job over rows on the terminal while it goes on (source: ours).

`panel(name, status)` and `line(status)` are pure, as in `report.terminal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from shoestring.base.clock import Clock
from shoestring.base.units import format_bytes, format_count
from shoestring.report.live import LiveBoard, Told, boxed, progress_bar, times

KINDS = 5
KIND_CHARS = 100
RIGHT = ("processes", "busy", "queue", "rows/s", "batch", "restarts", "memory")


class PoolLike(Protocol):
    """A pool of one worker; `fleet.job_status.PoolShown` is one."""

    @property
    def name(self) -> str:
        """`load`, `write`, or the stage's."""
        ...

    @property
    def processes(self) -> int:
        """That it has."""
        ...

    @property
    def busy(self) -> float:
        """Share of their time in which they worked, in [0, 1]."""
        ...

    @property
    def waiting(self) -> int:
        """Items queued before it."""
        ...

    @property
    def rows_per_s(self) -> float:
        """Source rows that went through it, of late."""
        ...

    @property
    def batch(self) -> int:
        """Items of a batch; 0: it has none."""
        ...

    @property
    def restarts(self) -> int:
        """Of its processes, so far."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Of its largest process."""
        ...


class JobLike(Protocol):
    """How far a job is; `fleet.job_status.JobStatus` is one."""

    @property
    def rows(self) -> int:
        """In all."""
        ...

    @property
    def done(self) -> int:
        """In committed output."""
        ...

    @property
    def failed(self) -> int:
        """Of those, with an error."""
        ...

    @property
    def begun(self) -> int:
        """In hand."""
        ...

    @property
    def rows_per_s(self) -> float:
        """Of late."""
        ...

    @property
    def eta_s(self) -> float:
        """Until the end; 0 while unknown."""
        ...

    @property
    def errors(self) -> Mapping[str, int]:
        """Kind -> rows."""
        ...

    @property
    def not_numbers(self) -> Mapping[str, int]:
        """Column -> values that are NaN."""
        ...

    @property
    def pools(self) -> Mapping[str, Sequence[PoolLike]]:
        """Worker -> its pools in the order of the flow."""
        ...


class ShardStatusLike(Told, Protocol):
    """What is shown; `fleet.messages.Status` of a job over rows is one."""

    @property
    def workers(self) -> Mapping[str, Mapping[str, float | str]]:
        """Name -> state, and so on."""
        ...

    @property
    def job(self) -> JobLike | None:
        """How far it is; None: nothing is known yet."""
        ...


@dataclass(frozen=True)
class Summed:
    """One part over all workers: processes, queues and rows add up, busy is the mean over processes."""

    name: str
    processes: int
    busy: float
    waiting: int
    rows_per_s: float
    batch: int
    restarts: int
    memory_bytes: int


def summed(pools: Iterable[Sequence[PoolLike]]) -> list[Summed]:
    """The pools of all workers by name, in the order of the flow."""
    by_name: dict[str, list[PoolLike]] = {}
    for of_worker in pools:
        for pool in of_worker:
            by_name.setdefault(pool.name, []).append(pool)
    found = []
    for name, same in by_name.items():
        processes = sum(pool.processes for pool in same)
        found.append(
            Summed(
                name=name,
                processes=processes,
                busy=sum(pool.busy * pool.processes for pool in same) / max(1, processes),
                waiting=sum(pool.waiting for pool in same),
                rows_per_s=sum(pool.rows_per_s for pool in same),
                batch=max(pool.batch for pool in same),
                restarts=sum(pool.restarts for pool in same),
                memory_bytes=max(pool.memory_bytes for pool in same),
            )
        )
    return found


def panel(name: str, status: ShardStatusLike) -> RenderableType:
    """The state of a job as a block of text."""
    job = status.job
    parts: list[RenderableType] = []
    if job is None:
        parts.append(Text("the workers are starting", style="dim"))
    else:
        parts += [progress_bar(_share(job), _times(status.elapsed_s, job)), Text.assemble(*_figures(job))]
        if pools := summed(job.pools.values()):
            parts.append(_pools(pools))
        parts += [Text(said, style="yellow") for said in _troubles(job)]
    if away := _away(status.workers):
        parts.append(Text(away, style="red"))
    return boxed(Text.assemble((name, "bold")), parts)


def line(status: ShardStatusLike) -> str:
    """The state of a job in one line."""
    job = status.job
    if job is None:
        return "the workers are starting"
    figures = "".join(text for text, _ in _figures(job))
    pools = [
        f"{pool.name} {pool.processes} x {pool.busy:.0%}"
        + (f", {pool.waiting:,} queued" if pool.waiting else "")
        for pool in summed(job.pools.values())
    ]
    away = _away(status.workers)
    return " | ".join([figures, *pools, *([away] if away else []), _times(status.elapsed_s, job)])


class ShardView(LiveBoard[ShardStatusLike]):
    """Shows a job; see `LiveBoard`."""

    def __init__(
        self, quiet: bool = False, console: Console | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(panel, line, "", quiet, console, clock)


def _figures(job: JobLike) -> list[tuple[str, str]]:
    """(text, style) pieces of the line of figures."""
    pieces = [(f"{job.done:,}", "bold"), (f" of {job.rows:,} rows", "dim")]
    if job.begun:
        pieces.append((f", {job.begun:,} in hand", "dim"))
    if job.rows_per_s > 0:
        pieces += [("   ", ""), (format_count(job.rows_per_s), "bold"), (" rows/s", "dim")]
    if job.failed:
        pieces += [("   ", ""), (f"{job.failed:,} with an error", "bold red")]
    return pieces


def _pools(pools: Sequence[Summed]) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("part", *RIGHT):
        table.add_column(title, justify="right" if title in RIGHT else "left")
    for pool in pools:
        table.add_row(
            pool.name,
            str(pool.processes),
            f"{pool.busy:.0%}",
            f"{pool.waiting:,}" if pool.waiting else "",
            format_count(pool.rows_per_s) if pool.rows_per_s > 0 else "",
            f"{pool.batch:,}" if pool.batch else "",
            str(pool.restarts) if pool.restarts else "",
            format_bytes(pool.memory_bytes) if pool.memory_bytes else "",
        )
    return table


def _troubles(job: JobLike) -> list[str]:
    """Errors by kind, the most frequent first, and columns with NaN."""
    ranked = sorted(job.errors.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{count:,} x {kind[:KIND_CHARS]}" for kind, count in ranked[:KINDS]]
    if len(ranked) > KINDS:
        said.append(f"and {len(ranked) - KINDS} other kinds of errors")
    return said + [f"{count:,} NaN in {name}" for name, count in sorted(job.not_numbers.items())[:KINDS]]


def _away(workers: Mapping[str, Mapping[str, float | str]]) -> str:
    """Workers that do not work, in words."""
    names: dict[str, list[str]] = {}
    for name, facts in sorted(workers.items()):
        if facts["state"] != "active":
            names.setdefault(str(facts["state"]).replace("_", " "), []).append(name)
    return "; ".join(f"{state}: {', '.join(found[:KINDS])}" for state, found in names.items())


def _share(job: JobLike) -> float:
    return job.done / job.rows if job.rows else 0.0


def _times(elapsed_s: float, job: JobLike) -> str:
    return times(_share(job), elapsed_s, job.eta_s if job.done < job.rows else 0.0)
