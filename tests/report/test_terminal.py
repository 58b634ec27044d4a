"""The live view: what it shows of a status, on a terminal, in a pipe, and with --json."""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass, field, replace

from rich.console import Console

from shoestring.base.clock import FakeClock
from shoestring.report.live import LINE_EVERY_S
from shoestring.report.terminal import LiveView, line, panel


@dataclass(frozen=True)
class Status:
    """Like fleet.messages.Status."""

    step: int = 1412
    progress: float = 0.625
    elapsed_s: float = 150.0
    eta_s: float = 90.4
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": 2.34567, "balance": 1.0})
    rates: dict[str, float] = field(default_factory=lambda: {"tokens_per_s": 15_432.0, "samples_per_s": 60.0})
    workers: dict[str, dict[str, float | str]] = field(
        default_factory=lambda: {
            "w1": {"state": "absent", "phase": "", "batch_time_s": 0.0, "samples_per_s": 0.0, "samples": 0.0},
            "w0": {
                "state": "active",
                "phase": "compute",
                "batch_time_s": 0.412,
                "samples_per_s": 58.2,
                "samples": 24.0,
            },
        }
    )
    todo: int = 400
    doing: int = 32
    done: int = 1000
    dead: int = 0
    messages: tuple[str, ...] = ()


def console(terminal: bool) -> tuple[Console, io.StringIO]:
    """A console that writes to memory."""
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=110, highlight=False, color_system=None), out


def drawn(status: Status) -> str:
    """The panel as text."""
    shown, out = console(terminal=False)
    shown.print(panel("demo-1", status))
    return out.getvalue()


def test_the_panel_shows_what_the_issue_asks_for() -> None:
    text = drawn(Status())
    for expected in ("demo-1", "step 1,412", "loss 2.346", "15.4 k tokens/s", "1,000 of 1,432 samples done",
                     "63% in 2:30", "1 min 30 s left"):  # fmt: skip
        assert expected in text or expected.replace("63%", "62%") in text, (expected, text)
    rows = {row.split()[1]: row for row in text.splitlines() if row.startswith("│ w")}
    assert "working" in rows["w0"] and "412 ms" in rows["w0"] and "24" in rows["w0"] and "58.2" in rows["w0"]
    assert "gone" in rows["w1"] and "ms" not in rows["w1"]


def test_samples_that_were_given_up_are_said() -> None:
    assert "3 given up" in drawn(replace(Status(), dead=3))
    assert "given up" not in drawn(Status())


def test_a_job_without_a_loss_shows_its_first_metrics() -> None:
    text = line(
        replace(Status(), metrics={"reward": 0.5, "entropy": 1.25, "kl": 9.0}, rates={"samples_per_s": 7.0})
    )
    assert "entropy 1.25 | kl 9" in text and "7 samples/s" in text


def test_before_the_first_step_nothing_breaks() -> None:
    empty = Status(0, 0.0, 0.0, 0.0, {}, {}, {}, 0, 0, 0)
    assert "no samples" in drawn(empty) and "left" not in line(empty)


def test_many_workers_do_not_fill_the_screen() -> None:
    many: dict[str, dict[str, float | str]] = {f"w{i:03d}": {"state": "active"} for i in range(100)}
    text = drawn(replace(Status(), workers=many))
    assert "and 76 more" in text and text.count("working") == 24


def test_in_a_pipe_a_line_now_and_then_and_every_message() -> None:
    shown, out = console(terminal=False)
    clock = FakeClock()
    with LiveView("demo-1", console=shown, clock=clock) as view:
        view.say("packing")
        for second in range(12):
            messages = ("w1 is gone [bold]",) if second == 3 else ()
            view.status(replace(Status(), step=second, messages=messages))
            clock.advance(1.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "packing"
    assert [text.split(" | ")[0] for text in lines if text.startswith("step")] == [
        "step 0",
        "step 5",
        "step 10",
    ]
    assert LINE_EVERY_S == 5.0
    assert "2:30  w1 is gone [bold]" in lines


def test_on_a_terminal_messages_stand_above_the_panel_and_no_thread_runs() -> None:
    shown, out = console(terminal=True)
    before = threading.active_count()
    with LiveView("demo-1", console=shown, clock=FakeClock()) as view:
        view.status(Status())
        view.status(replace(Status(), step=1500, messages=("w1 is gone: restart in 0.5 s",)))
        assert threading.active_count() == before
        view.say("scoring")
    text = out.getvalue()
    assert text.index("step 1,412") < text.index("w1 is gone: restart in 0.5 s") < text.index("step 1,500")
    assert "scoring" in text
    assert text.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_with_json_nothing_is_shown() -> None:
    for terminal in (False, True):
        shown, out = console(terminal)
        with LiveView("demo-1", quiet=True, console=shown, clock=FakeClock()) as view:
            view.say("packing")
            view.status(replace(Status(), messages=("w1 is gone",)))
        assert out.getvalue() == ""
