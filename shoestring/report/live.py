"""Whatever goes on, shown on the terminal meanwhile (source: ours).

On a terminal a panel is drawn in place, with what happens scrolling above it; elsewhere it is a line now and
then; where the user asked for JSON it is nothing. No thread is started: the process that shows a run also
forks its workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.units import format_duration

LINE_EVERY_S = 5.0


class Told(Protocol):
    """What every status tells."""

    @property
    def elapsed_s(self) -> float:
        """Time of running."""
        ...

    @property
    def messages(self) -> Sequence[str]:
        """What happened since the last status."""
        ...


S = TypeVar("S", bound=Told)


class LiveBoard(Generic[S]):
    """Shows statuses of one kind: enter it, give it texts and statuses, leave it.

    Args:
        panel: (name of the run, status) -> a block of text, for a terminal.
        line: status -> a line, for elsewhere.
        name: of the run, where it is known yet.
        quiet: show nothing (the user asked for JSON).
        console: where to; standard output when not given.
        clock: for the time between lines.
    """

    def __init__(
        self,
        panel: Callable[[str, S], RenderableType],
        line: Callable[[S], str],
        name: str = "",
        quiet: bool = False,
        console: Console | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._panel, self._line = panel, line
        self._name = name
        self._quiet = quiet
        self._console = console or Console(highlight=False)
        self._clock = clock or SystemClock()
        self._live: Live | None = None
        self._line_due_s = float("-inf")

    def __enter__(self) -> Self:
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

    def status(self, status: S) -> None:
        """Show the newest state; its messages are said first."""
        if self._quiet:
            return
        for message in status.messages:
            said = Text.assemble((f"{clock_of(status.elapsed_s)}  ", "dim"), (message, "yellow"))
            self._console.print(said, soft_wrap=True)
        if self._console.is_terminal:
            self._draw(status)
        elif self._clock.now() >= self._line_due_s:
            self._line_due_s = self._clock.now() + LINE_EVERY_S
            self._console.print(Text(self._line(status)), soft_wrap=True)

    def _draw(self, status: S) -> None:
        if self._live is None:
            self._live = Live(
                console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(self._panel(self._name, status), refresh=True)


def boxed(title: Text, parts: Sequence[RenderableType]) -> RenderableType:
    """Blocks under each other in a frame."""
    return Panel(Group(*parts), title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def progress_bar(share: float, beside: str) -> RenderableType:
    """A bar that is full at 1, and a text to its right."""
    bar = Table.grid(padding=(0, 2), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(ProgressBar(total=1.0, completed=share), Text(beside))
    return bar


def times(share: float, elapsed_s: float, left_s: float) -> str:
    """How much of it is over, since when, and how long it still takes (0: not known)."""
    left = f", {format_duration(round(left_s))} left" if left_s > 0 else ""
    return f"{share:.0%} in {clock_of(elapsed_s)}{left}"


def clock_of(duration_s: float) -> str:
    """As a clock shows it. Example: 3725 s are `1:02:05`."""
    minutes, seconds = divmod(int(duration_s), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
