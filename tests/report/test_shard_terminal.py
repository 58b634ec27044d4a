"""A job over rows on the terminal: what is shown, and where."""

from __future__ import annotations

import io

from rich.console import Console

from shoestring.base.clock import FakeClock
from shoestring.fleet.job_status import JobStatus, PoolShown
from shoestring.fleet.messages import Status
from shoestring.report.live import LINE_EVERY_S
from shoestring.report.shard_terminal import ShardView, line, panel, summed

POOLS = (
    PoolShown("load", "load", 2, busy=0.25, rows_per_s=120.0),
    PoolShown(
        "detect",
        "stage",
        3,
        busy=0.9,
        waiting=1200,
        rows_per_s=118.0,
        batch=64,
        restarts=1,
        memory_bytes=3 << 20,
    ),
    PoolShown("write", "write", 1, busy=0.05, rows_per_s=118.0),
)
STATUS = Status(
    elapsed_s=75.0,
    workers={"w0": {"state": "active", "shards": 2.0}, "w1": {"state": "given_up", "shards": 0.0}},
    messages=("detect gets 3 processes: 1200 items wait for it",),
    job=JobStatus(
        rows=10_000, done=2_500, failed=12, begun=640, shards=5, rows_per_s=120.0, eta_s=62.5,
        errors={"ValueError at model.py:12": 9, "the image cannot be decoded": 3}, not_numbers={"score": 4},
        pools={"w0": POOLS, "w2": POOLS},
    ),
)  # fmt: skip


def drawn(status: Status) -> str:
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    console.print(panel("infer-1", status))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_panel_tells_rows_pools_errors_and_who_is_away() -> None:
    text = drawn(STATUS)
    assert "infer-1" in text and "2,500 of 10,000 rows, 640 in hand" in text
    assert "120 rows/s" in text and "25% in 1:15, 1 min 2 s left" in text
    assert "12 with an error" in text and "9 x ValueError at model.py:12" in text and "4 NaN in score" in text
    assert "given up: w1" in text
    row = next(one for one in text.splitlines() if "detect" in one)
    assert row.split()[1:6] == ["detect", "6", "90%", "2,400", "236"]


def test_pools_of_all_workers_add_up() -> None:
    found = summed([POOLS, POOLS])
    assert [pool.name for pool in found] == ["load", "detect", "write"]
    assert found[1].processes == 6 and found[1].waiting == 2400 and found[1].busy == 0.9


def test_before_anything_is_known_it_says_so() -> None:
    assert "workers are starting" in drawn(Status())
    assert line(Status()) == "the workers are starting"


def test_elsewhere_it_is_a_line_now_and_then() -> None:
    out, clock = io.StringIO(), FakeClock()
    with ShardView(console=Console(file=out, width=300), clock=clock) as view:
        view.say("run infer-1")
        for _ in range(8):
            view.status(STATUS)
            clock.advance(LINE_EVERY_S / 4)
    lines = out.getvalue().splitlines()
    assert lines[0] == "run infer-1"
    assert sum("detect gets 3 processes" in one for one in lines) == 8
    assert sum("detect 6 x 90%, 2,400 queued" in one for one in lines) == 2


def test_quiet_says_nothing() -> None:
    out = io.StringIO()
    with ShardView(quiet=True, console=Console(file=out)) as view:
        view.begin("infer-1")
        view.say("run infer-1")
        view.status(STATUS)
    assert out.getvalue() == ""


def test_on_a_terminal_the_panel_is_drawn_in_place() -> None:
    out = io.StringIO()
    with ShardView(console=Console(file=out, width=110, force_terminal=True)) as view:
        view.begin("infer-1")
        view.status(STATUS)
    assert "infer-1" in out.getvalue() and "detect gets 3 processes" in out.getvalue()
