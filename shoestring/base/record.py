"""The run record: one append-only, crash-safe event log a run (source: ours).

A line is `{"crc": "<8 hex digits>", "event": {...}}`: the checksum covers the bytes of the
event object as written. Several processes may append: each event is one `write` to a file
opened with O_APPEND. A crash can only damage the last line; whatever is damaged is named by
the reader, skipped and counted, never taken for an event.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from shoestring.base.clock import Clock, SystemClock
from shoestring.base.errors import RecordError

_PREFIX = b'{"crc": "'
_MIDDLE = b'", "event": '
_DURABLE_KINDS = frozenset({"run", "plan", "decision", "fault", "checkpoint", "result", "end"})


@dataclass(frozen=True)
class Damage:
    """One stretch of the log that is not an intact event."""

    line: int
    reason: str


@dataclass(frozen=True)
class Events:
    """What a log holds: the intact events in order, and what was damaged."""

    events: list[dict[str, Any]] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    def of(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds, in order."""
        return [event for event in self.events if event["kind"] in kinds]


class RunRecord:
    """Appends events to a run's `events.jsonl`.

    Args:
        path: the log file; made when missing.
        source: who writes (`"coordinator"`, `"supervisor"`, ...); stands in every event.
        clock: where the events' wall time comes from.

    Raises:
        RecordError: when the file cannot be opened.
    """

    def __init__(self, path: Path, source: str, clock: Clock | None = None) -> None:
        self.path = path
        self._source = source
        self._clock = clock or SystemClock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise RecordError(f"cannot open the event log {path}: {error}", "check the directory") from error
        self._end_torn_line()

    def append(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Write one event; kinds that matter for recovery are on disk when this returns.

        Raises:
            RecordError: when the disk is full or the file cannot be written.
        """
        event = {"kind": kind, "wall_s": round(self._clock.wall(), 4), "source": self._source, **fields}
        line = encode_line(event)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, "short write")
            if kind in _DURABLE_KINDS:
                os.fsync(self._fd)
        except OSError as error:
            raise RecordError(
                f"cannot write to the event log {self.path}: {error}",
                "free some space on that disk, then `shoestring resume` the run",
            ) from error
        return event

    def close(self) -> None:
        """Close the file; further appends fail."""
        os.close(self._fd)

    def _end_torn_line(self) -> None:
        # A torn last line must not swallow the first event of the next writer.
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")


def encode_line(event: dict[str, Any]) -> bytes:
    """One log line, newline included."""
    body = msgspec.json.encode(event)
    return _PREFIX + b"%08x" % zlib.crc32(body) + _MIDDLE + body + b"}\n"


def read_events(path: Path) -> Events:
    """All intact events of a log, and the damaged lines by number (from 1).

    Raises:
        RecordError: when there is no such file.
    """
    result = Events()
    for number, line in enumerate(_lines(path), start=1):
        reason, event = _decode_line(line)
        if event is not None:
            result.events.append(event)
        elif reason:
            result.damage.append(Damage(number, reason))
    return result


class EventTail:
    """Follows a log while others write it: each `read` gives what is new and whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The intact events since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._offset += whole
        decoded = (_decode_line(line)[1] for line in data[:whole].splitlines())
        return [event for event in decoded if event is not None]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read the event log {path}: {error}", "give the name of a run") from error
    return iter(data.split(b"\n"))


def _decode_line(line: bytes) -> tuple[str, dict[str, Any] | None]:
    """(reason of damage, event): an empty line is neither."""
    if not line:
        return "", None
    start = len(_PREFIX) + 8 + len(_MIDDLE)
    if not line.startswith(_PREFIX) or not line.endswith(b"}") or len(line) <= start:
        return "incomplete line", None
    body = line[start:-1]
    if b"%08x" % zlib.crc32(body) != line[len(_PREFIX) : len(_PREFIX) + 8]:
        return "checksum does not match", None
    event = msgspec.json.decode(body)
    return ("", event) if isinstance(event, dict) and "kind" in event else ("not an event", None)
