"""The server's loop: frames, one commit a turn before any answer, strangers kept apart."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.clock import FakeClock
from shoestring.base.errors import FleetError, LedgerError, TransportError
from shoestring.fleet import messages as m
from shoestring.fleet.channel import UnixChannel
from shoestring.fleet.frames import FrameReader, pack_frame
from shoestring.fleet.local import bind_private
from shoestring.fleet.server import TICK_S, Server


class Fake:
    """A coordinator that notes in which order it is used."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.full = False
        self.calm = False

    def handle(self, now: float, request: m.Request) -> m.Reply:
        self.log.append(type(request).__name__)
        return m.Value(request.key.encode()) if isinstance(request, m.KvGet) else m.Ack()

    def tick(self, now: float) -> None:
        self.log.append("tick")

    def flush(self) -> None:
        self.log.append("flush")
        if self.full:
            raise LedgerError("the disk is full", "free some space")

    def append(self, kind: str, **fields: Any) -> None:
        self.log.append(f"{kind}: {fields['reason']}")


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = path / "s"
        self.listener = bind_private(self.path)
        self.fake, self.clock = Fake(), FakeClock(100.0)
        self.server = Server(self.fake, self.listener, self.clock, self.fake)

    def connect(self) -> socket.socket:
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(self.path))
        line.settimeout(5.0)
        return line

    def turns(self, count: int = 3) -> None:
        for _ in range(count):
            self.clock.advance(TICK_S)  # so that no turn waits
            self.server.turn()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.server.close()
    rig.listener.close()


def get(key: str) -> bytes:
    return pack_frame(m.encode(m.KvGet(1, key)))


def read(line: socket.socket, count: int = 1) -> list[m.Reply]:
    reader, replies = FrameReader(), []
    while len(replies) < count:
        replies += [m.decode_reply(body) for body in reader.feed(line.recv(65536))]
    return replies


def test_what_arrives_together_shares_one_commit_and_is_answered_after_it(rig: Rig) -> None:
    lines = [rig.connect() for _ in range(3)]
    rig.turns(2)
    rig.fake.log.clear()
    for index, line in enumerate(lines):
        line.sendall(get(f"a{index}") + get(f"b{index}"))
    rig.server.turn()
    assert [entry for entry in rig.fake.log if entry != "tick"] == ["KvGet"] * 6 + ["flush"]
    for index, line in enumerate(lines):
        assert read(line, 2) == [m.Value(b"a%d" % index), m.Value(b"b%d" % index)]
        line.close()


def test_no_answer_leaves_when_the_commit_fails(rig: Rig) -> None:
    line = rig.connect()
    rig.turns(2)
    rig.fake.full = True
    line.sendall(get("a"))
    with pytest.raises(LedgerError, match="disk is full"):
        rig.server.turn()
    line.setblocking(False)
    with pytest.raises(BlockingIOError):
        line.recv(1)
    line.close()


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", struct.pack(">I", 3) + b"\xff\xff\xff", pack_frame(b""), pack_frame(b"\x80")],
)
def test_a_stranger_is_cut_off_and_the_others_are_not(rig: Rig, data: bytes) -> None:
    good, bad = rig.connect(), rig.connect()
    rig.turns(2)
    bad.sendall(data)
    rig.turns()
    assert bad.recv(1) == b""
    assert [entry for entry in rig.fake.log if entry.startswith("fault")] != []
    good.sendall(get("still here"))
    rig.turns()
    assert read(good) == [m.Value(b"still here")]
    good.close()
    bad.close()


def test_a_frame_in_pieces_and_a_large_answer_get_through(rig: Rig) -> None:
    line, key = rig.connect(), "x" * 3_000_000
    data = get(key)
    rig.turns(2)
    line.setblocking(False)
    reader, replies, sent = FrameReader(), [], 0
    for _ in range(1000):
        if sent < len(data):
            with contextlib.suppress(BlockingIOError):
                sent += line.send(data[sent : sent + 100_000])
        rig.turns(1)
        try:
            replies += reader.feed(line.recv(50_000))
        except BlockingIOError:
            continue
        if replies:
            break
    assert m.decode_reply(replies[0]) == m.Value(key.encode())
    line.close()


def test_it_ticks_by_the_clock(rig: Rig) -> None:
    rig.turns(4)
    assert rig.fake.log == ["tick", "flush"] * 4


def test_a_taken_socket_says_so(rig: Rig) -> None:
    with pytest.raises(FleetError, match="already taken"):
        bind_private(rig.path)


def test_a_socket_is_for_its_user_only_and_a_path_too_long_says_so(rig: Rig, tmp_path: Path) -> None:
    assert rig.path.stat().st_mode & 0o077 == 0
    with pytest.raises(FleetError, match="TMPDIR"):
        bind_private(tmp_path / ("x" * 200))


def test_a_channel_gives_up_the_connection_after_an_error(tmp_path: Path) -> None:
    nobody = UnixChannel(tmp_path / "nobody", timeout_s=0.05)
    with pytest.raises(TransportError):
        nobody.call(m.KvGet(1, "a"))
    listener = bind_private(tmp_path / "s")
    silent = UnixChannel(tmp_path / "s", timeout_s=0.05)
    with pytest.raises(TransportError):
        silent.call(m.KvGet(1, "first"))
    with pytest.raises(TransportError):
        silent.call(m.KvGet(1, "second"))
    first, second = listener.accept()[0], listener.accept()[0]
    # Each question came on a line of its own: a late answer to the first cannot be taken for the second's.
    assert b"first" in first.recv(1000) and b"second" in second.recv(1000)
    assert first.recv(1) == b""
    for line in (first, second, listener):
        line.close()


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1, max_size=50))
def test_frames_come_out_as_they_went_in_however_they_are_cut(bodies: list[bytes], cuts: list[int]) -> None:
    stream, reader, out, start = b"".join(map(pack_frame, bodies)), FrameReader(), [], 0
    for size in cuts:
        out += reader.feed(stream[start : start + size])
        start += size
    assert out + reader.feed(stream[start:]) == bodies


def test_a_frame_over_the_limit_is_refused_before_it_arrives() -> None:
    with pytest.raises(TransportError, match="announces 9 bytes"):
        FrameReader(limit_bytes=8).feed(struct.pack(">I", 9))


def test_it_ticks_rarely_while_all_is_calm_and_at_once_when_it_is_not(rig: Rig) -> None:
    rig.fake.calm = True
    line = rig.connect()
    rig.turns(1)
    rig.fake.log.clear()
    for _ in range(5):
        line.sendall(get("a"))  # so that no turn waits
        rig.turns(1)
    assert "tick" not in rig.fake.log and "KvGet" in rig.fake.log
    rig.fake.calm = False
    line.sendall(get("a"))
    rig.turns(2)
    assert "tick" in rig.fake.log
    line.close()
