"""The run on the terminal while it goes on (source: ours).

`panel(name, status)` and `line(status)` are pure. On a terminal the panel is drawn in place, with
what happens scrolling above it; elsewhere it is a line now and then; with `quiet` it is nothing.
No thread is started: the process that shows the run also forks its workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.units import format_count, format_duration

LINE_EVERY_S = 5.0
WORKER_LINES = 24
STATE_STYLES: Mapping[str, str] = MappingProxyType(
    {"active": "green", "waiting": "cyan", "starting": "yellow", "absent": "red", "given_up": "bold red"}
)
STATE_NAMES: Mapping[str, str] = MappingProxyType(
    {"absent": "gone", "given_up": "given up", "active": "working"}
)


class StatusLike(Protocol):
    """What is shown of a fleet; `fleet.messages.Status` is one."""

    @property
    def step(self) -> int:
        """The newest step that all have applied."""
        ...

    @property
    def progress(self) -> float:
        """Share of the run that is over, in [0, 1]."""
        ...

    @property
    def elapsed_s(self) -> float:
        """Time of running."""
        ...

    @property
    def eta_s(self) -> float:
        """Time left; 0 while unknown."""
        ...

    @property
    def metrics(self) -> dict[str, float]:
        """Of the newest step."""
        ...

    @property
    def rates(self) -> dict[str, float]:
        """`tokens_per_s` and the like."""
        ...

    @property
    def workers(self) -> dict[str, dict[str, float | str]]:
        """Name -> state, phase, batch_time_s, samples, samples_per_s."""
        ...

    @property
    def todo(self) -> int:
        """Samples to do."""
        ...

    @property
    def doing(self) -> int:
        """Samples under way."""
        ...

    @property
    def done(self) -> int:
        """Samples done."""
        ...

    @property
    def dead(self) -> int:
        """Samples given up."""
        ...

    @property
    def messages(self) -> tuple[str, ...]:
        """What happened since the last status."""
        ...


def panel(name: str, status: StatusLike) -> RenderableType:
    """The state of a run as a block of text."""
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(ProgressBar(total=1.0, completed=status.progress), Text(_times(status)))
    parts: list[RenderableType] = [bar, _figures(status)]
    if status.workers:
        parts.append(_workers(status))
    title = Text.assemble((name, "bold"), f"  step {status.step:,}")
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def line(status: StatusLike) -> str:
    """The state of a run in one line."""
    metrics = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in _shown_metrics(status)]
    rates = [f"{format_count(value)} {_rate_name(key)}" for key, value in _shown_rates(status)]
    workers = [_worker_words(name, facts) for name, facts in sorted(status.workers.items())]
    parts = [f"step {status.step:,}", *metrics, *rates, _samples(status), *workers, _times(status)]
    return " | ".join(parts)


class LiveView:
    """Shows a run: enter it, give it texts and statuses, leave it.

    Args:
        name: of the run.
        quiet: show nothing (the user asked for JSON).
        console: where to; standard output when not given.
        clock: for the time between lines where there is no terminal.
    """

    def __init__(
        self, name: str, quiet: bool = False, console: Console | None = None, clock: Clock | None = None
    ) -> None:
        self._name = name
        self._quiet = quiet
        self._console = console or Console(highlight=False)
        self._clock = clock or SystemClock()
        self._live: Live | None = None
        self._line_due_s = float("-inf")

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, text: str) -> None:
        """One message, above the panel."""
        if not self._quiet:
            self._console.print(Text(text), soft_wrap=True)

    def status(self, status: StatusLike) -> None:
        """Show the newest state; its messages are said first."""
        if self._quiet:
            return
        for message in status.messages:
            said = Text.assemble((f"{_clock(status.elapsed_s)}  ", "dim"), (message, "yellow"))
            self._console.print(said, soft_wrap=True)
        if self._console.is_terminal:
            self._draw(status)
        elif self._clock.now() >= self._line_due_s:
            self._line_due_s = self._clock.now() + LINE_EVERY_S
            self._console.print(Text(line(status)), soft_wrap=True)

    def _draw(self, status: StatusLike) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(panel(self._name, status), refresh=True)


def _figures(status: StatusLike) -> RenderableType:
    grid = Table.grid(padding=(0, 3))
    cells = [
        Text.assemble((key.replace("_", " ") + " ", "dim"), (f"{value:.4g}", "bold"))
        for key, value in _shown_metrics(status)
    ]
    cells += [
        Text.assemble((format_count(value), "bold"), (f" {_rate_name(key)}", "dim"))
        for key, value in _shown_rates(status)
    ]
    grid.add_row(*cells, Text(_samples(status), style="dim"))
    return grid


def _workers(status: StatusLike) -> RenderableType:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    for title in ("worker", "state", "batch time", "samples", "samples/s"):
        table.add_column(title, justify="left" if title in ("worker", "state") else "right")
    for name, facts in sorted(status.workers.items())[:WORKER_LINES]:
        state = str(facts["state"])
        style = STATE_STYLES[state] if state in STATE_STYLES else ""
        table.add_row(
            name,
            Text(_state(facts), style=style),
            *(format_ for format_ in _worker_figures(facts)),
        )
    if (more := len(status.workers) - WORKER_LINES) > 0:
        table.add_row(f"and {more} more")
    return table


def _worker_figures(facts: Mapping[str, float | str]) -> tuple[str, str, str]:
    batch_time_s, samples, per_s = (
        _number(facts, key) for key in ("batch_time_s", "samples", "samples_per_s")
    )
    return (
        format_duration(batch_time_s) if batch_time_s else "",
        f"{samples:,.0f}" if samples else "",
        format_count(per_s) if per_s else "",
    )


def _worker_words(name: str, facts: Mapping[str, float | str]) -> str:
    if facts["state"] != "active":
        return f"{name} {_state(facts)}"
    batch_time, samples, _ = _worker_figures(facts)
    return f"{name} {samples or 'no'} samples in {batch_time}" if batch_time else f"{name} {_state(facts)}"


def _state(facts: Mapping[str, float | str]) -> str:
    state = str(facts["state"])
    return STATE_NAMES[state] if state in STATE_NAMES else state


def _number(facts: Mapping[str, float | str], key: str) -> float:
    return float(facts[key]) if key in facts else 0.0


def _shown_metrics(status: StatusLike) -> list[tuple[str, float]]:
    """The loss, or where there is none the first two metrics."""
    if "loss" in status.metrics:
        return [("loss", status.metrics["loss"])]
    return sorted(status.metrics.items())[:2]


def _shown_rates(status: StatusLike) -> list[tuple[str, float]]:
    """What the task counts; samples only where it counts nothing else."""
    own = [(key, value) for key, value in sorted(status.rates.items()) if key != "samples_per_s"]
    return own or sorted(status.rates.items())


def _rate_name(key: str) -> str:
    return key.replace("_per_s", "/s").replace("_", " ")


def _samples(status: StatusLike) -> str:
    total = status.todo + status.doing + status.done + status.dead
    dead = f", {status.dead:,} given up" if status.dead else ""
    return f"{status.done:,} of {total:,} samples done{dead}" if total else "no samples"


def _times(status: StatusLike) -> str:
    left = f", {format_duration(round(status.eta_s))} left" if status.eta_s > 0 else ""
    return f"{status.progress:.0%} in {_clock(status.elapsed_s)}{left}"


def _clock(duration_s: float) -> str:
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
