"""The run on the terminal while it goes on (source: ours).

`panel(name, status)` and `line(status)` are pure; `report.live` shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from shoestring.base.clock import Clock
from shoestring.base.units import format_count, format_duration
from shoestring.report.live import LiveBoard, Told, boxed, progress_bar, times

WORKER_LINES = 24
STATE_STYLES: Mapping[str, str] = MappingProxyType(
    {"active": "green", "waiting": "cyan", "starting": "yellow", "absent": "red", "given_up": "bold red"}
)
STATE_NAMES: Mapping[str, str] = MappingProxyType(
    {"absent": "gone", "given_up": "given up", "active": "working"}
)


class StatusLike(Told, Protocol):
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


def panel(name: str, status: StatusLike) -> RenderableType:
    """The state of a run as a block of text."""
    parts = [progress_bar(status.progress, _times(status)), _figures(status)]
    if status.workers:
        parts.append(_workers(status))
    title = Text.assemble((name, "bold"), f"  step {status.step:,}")
    return boxed(title, parts)


def line(status: StatusLike) -> str:
    """The state of a run in one line."""
    metrics = [f"{key.replace('_', ' ')} {value:.4g}" for key, value in _shown_metrics(status)]
    rates = [f"{format_count(value)} {_rate_name(key)}" for key, value in _shown_rates(status)]
    workers = [_worker_words(name, facts) for name, facts in sorted(status.workers.items())]
    parts = [f"step {status.step:,}", *metrics, *rates, _samples(status), *workers, _times(status)]
    return " | ".join(parts)


class LiveView(LiveBoard[StatusLike]):
    """Shows a run; see `LiveBoard`."""

    def __init__(
        self, name: str, quiet: bool = False, console: Console | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(panel, line, name, quiet, console, clock)


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
    return times(status.progress, status.elapsed_s, status.eta_s)
