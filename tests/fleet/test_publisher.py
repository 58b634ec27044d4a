"""What is committed is published, after the commit and in order; also from a thread of its own."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from shoestring.base.clock import SystemClock
from shoestring.base.errors import FleetError
from shoestring.data.output_state import Output
from shoestring.fleet.publisher import Publisher
from tests.fleet.shard_rig import FakeSink

CLOCK = SystemClock()
PATIENCE_S = 60.0


class SlowSink(FakeSink):
    """Publishes when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def publish(self, output: Output) -> None:
        assert self.gate.wait(PATIENCE_S)
        super().publish(output)


def outputs(sink: FakeSink, count: int) -> list[Output]:
    made = []
    for at in range(count):
        made.append(Output(at, f"part-{at}", ((at, at + 1),), sink.stage(f"staged-{at}", {at: ""})))
    return made


def finished(publisher: Publisher, facts: dict[str, Any]) -> bool:
    until_s = CLOCK.now() + PATIENCE_S
    while not publisher.finish(facts):
        assert CLOCK.now() < until_s
        publisher.publish()
        CLOCK.sleep(0.005)
    return True


def test_nothing_is_seen_before_the_commit() -> None:
    sink = FakeSink()
    publisher = Publisher(sink)
    for output in outputs(sink, 3):
        publisher.add(output)
    assert not sink.published and not publisher.finish({"rows": 3})
    publisher.publish()
    assert list(sink.published) == ["part-0", "part-1", "part-2"] and sink.finished is None
    assert publisher.finish({"rows": 3}) and sink.finished == {"rows": 3}
    sink.finished = None
    assert publisher.finish({"rows": 3}) and sink.finished is None  # said once


def test_a_slow_sink_keeps_nobody_waiting_and_the_end_comes_last() -> None:
    sink = SlowSink()
    publisher = Publisher(sink, aside=True)
    for output in outputs(sink, 3):
        publisher.add(output)
    publisher.publish()
    assert not publisher.finish({"rows": 3}) and sink.finished is None
    sink.gate.set()
    assert finished(publisher, {"rows": 3})
    assert list(sink.published) == ["part-0", "part-1", "part-2"] and sink.finished == {"rows": 3}


def test_what_the_thread_meets_is_raised_to_who_publishes() -> None:
    sink = SlowSink()
    sink.broken = "the store is full"
    publisher = Publisher(sink, aside=True)
    (output,) = outputs(sink, 1)
    publisher.add(output)
    publisher.publish()
    sink.gate.set()
    with pytest.raises(FleetError, match="the store is full"):
        finished(publisher, {})
