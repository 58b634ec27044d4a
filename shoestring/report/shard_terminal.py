"""A job over rows on the terminal while it goes on (source: ours).

`panel(name, status)` and `line(status)` are pure, as in `report.terminal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.units import format_bytes, format_count, format_duration

LINE_EVERY_S = 5.0
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


class ShardStatusLike(Protocol):
    """What is shown; `fleet.messages.Status` of a job over rows is one."""

    @property
    def elapsed_s(self) -> float:
        """Time of running."""
        ...

    @property
    def workers(self) -> Mapping[str, Mapping[str, float | str]]:
        """Name -> state, and so on."""
        ...

    @property
    def messages(self) -> Sequence[str]:
        """What happened since the last status."""
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
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(justify="right", no_wrap=True)
        bar.add_row(ProgressBar(total=1.0, completed=_share(job)), Text(_times(status.elapsed_s, job)))
        parts += [bar, Text.assemble(*_figures(job))]
        if pools := summed(job.pools.values()):
            parts.append(_pools(pools))
        parts += [Text(said, style="yellow") for said in _troubles(job)]
    if away := _away(status.workers):
        parts.append(Text(away, style="red"))
    title = Text.assemble((name, "bold"))
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim")


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


class ShardView:
    """Shows a job: enter it, give it texts and statuses, leave it. No thread is started.

    Args:
        quiet: show nothing (the user asked for JSON).
        console: where to; standard output when not given.
        clock: for the time between lines where there is no terminal.
    """

    def __init__(
        self, quiet: bool = False, console: Console | None = None, clock: Clock | None = None
    ) -> None:
        self._name = ""
        self._quiet = quiet
        self._console = console or Console(highlight=False)
        self._clock = clock or SystemClock()
        self._live: Live | None = None
        self._line_due_s = float("-inf")

    def __enter__(self) -> ShardView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, name: str) -> None:
        """The name of the run is known."""
        self._name = name

    def say(self, text: str) -> None:
        """One message, above the panel."""
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)

    def status(self, status: ShardStatusLike) -> None:
        """Show the newest state; its messages, decisions among them, are said first."""
        if self._quiet:
            return
        for message in status.messages:
            said = Text.assemble((f"{_clock(status.elapsed_s)}  ", "dim"), (message, "yellow"))
            self._console.print(said, soft_wrap=True)
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(
                    console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
                )
                self._live.start()
            self._live.update(panel(self._name, status), refresh=True)
        elif self._clock.now() >= self._line_due_s:
            self._line_due_s = self._clock.now() + LINE_EVERY_S
            self._console.print(Text(line(status)), soft_wrap=True)


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
    left = f", {format_duration(round(job.eta_s))} left" if job.eta_s > 0 and job.done < job.rows else ""
    return f"{_share(job):.0%} in {_clock(elapsed_s)}{left}"


def _clock(duration_s: float) -> str:
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
