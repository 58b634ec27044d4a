"""The run record survives torn writes and names what is damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import RecordError
from shoestring.base.record import EventTail, RunRecord, read_events


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "events.jsonl", "test", FakeClock(5.0))
    record.append("step", step=1, loss=2.5)
    record.append("decision", action="none", reason="all even")
    read = read_events(record.path)
    assert [event["kind"] for event in read.events] == ["step", "decision"]
    assert read.events[0] == {"kind": "step", "wall_s": 5.0, "source": "test", "step": 1, "loss": 2.5}
    assert read.damage == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_tail_is_named_and_the_next_writer_goes_on(tmp_path: Path, cut: int) -> None:
    record = RunRecord(tmp_path / "events.jsonl", "test", FakeClock())
    for step in range(3):
        record.append("step", step=step)
    record.close()
    os.truncate(record.path, record.path.stat().st_size - cut)
    again = RunRecord(record.path, "test", FakeClock())
    again.append("step", step=99)
    read = read_events(record.path)
    expected = [0, 1, 2, 99] if cut == 1 else [0, 1, 99]
    assert [event["step"] for event in read.events] == expected
    assert [damage.line for damage in read.damage] == ([] if cut == 1 else [3])


def test_a_flipped_byte_is_named_not_believed(tmp_path: Path) -> None:
    record = RunRecord(tmp_path / "events.jsonl", "test", FakeClock())
    for step in range(3):
        record.append("step", step=step)
    data = bytearray(record.path.read_bytes())
    at = data.index(b'"step":1')
    data[at + 7] = ord("7")
    record.path.write_bytes(bytes(data))
    read = read_events(record.path)
    assert [event["step"] for event in read.events] == [0, 2]
    assert read.damage[0].line == 2 and "checksum" in read.damage[0].reason


def test_the_tail_gives_only_what_is_new_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.read() == []
    record = RunRecord(path, "test", FakeClock())
    record.append("step", step=1)
    assert [event["step"] for event in tail.read()] == [1]
    with path.open("ab") as file:
        file.write(b'{"crc": "0000')
    assert tail.read() == []


def test_a_missing_log_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        read_events(tmp_path / "none")


def test_a_full_disk_is_a_clear_error() -> None:
    with pytest.raises(RecordError, match="No space left"):
        RunRecord(Path("/dev/full"), "test", FakeClock()).append("step", step=1)
