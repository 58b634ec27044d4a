"""What children tell of failures, and the line that they tell it on."""

from __future__ import annotations

import errno
import gc
import os
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import torch

from shoestring.base.errors import ConfigError, DataError, InferError, SinkError
from shoestring.data.output_state import Staged
from shoestring.infer.talk import Gone, Line
from shoestring.infer.telling import closed, holds_gpu, kind_of, memory_bytes, raised
from shoestring.infer.wire import Cost as C
from shoestring.infer.wire import Discard, Loaded, Orders, Raised, Replies, Up

ORDERS, REPLIES = msgspec.msgpack.Decoder(Orders), msgspec.msgpack.Decoder(Replies)


@pytest.mark.parametrize(
    ("error", "in_stage", "else_where"),
    [
        (ValueError("x"), "stage", "other"),
        (MemoryError(), "memory", "memory"),
        (pa.lib.ArrowMemoryError("x"), "memory", "memory"),
        (torch.OutOfMemoryError("x"), "memory", "memory"),
        (RuntimeError("CUDA error: out of memory"), "memory", "memory"),
        (ValueError("out of memory, said somebody"), "stage", "other"),
        (OSError(errno.ENOMEM, "x"), "memory", "memory"),
        (OSError(errno.EACCES, "x"), "stage", "other"),
        (ConfigError("x", "y"), "config", "config"),
        (InferError("x", "y"), "stage", "other"),
        (SinkError("x", "y"), "sink", "sink"),
        (DataError("x", "y"), "stage", "other"),
    ],
)
def test_kinds_of_failures(error: Exception, in_stage: str, else_where: str) -> None:
    assert (kind_of(error, "stage"), kind_of(error, "other")) == (in_stage, else_where)


def fails(text: str, error: type[Exception]) -> Raised:
    try:
        raise error(text)
    except Exception as caught:
        return raised(3, caught, "stage")


def test_failures_that_are_the_same_look_the_same() -> None:
    one, two = fails("first\nof many  lines", ValueError), fails("second", ValueError)
    assert one.signature == two.signature != fails("x", TypeError).signature
    assert one.signature.startswith("ValueError at test_child.py:")
    assert one.text == "ValueError: first of many lines" and one.task == 3 and one.todo == ""
    assert "raise error(text)" in one.detail and len(fails("x" * 10_000, ValueError).text) <= 500


def test_the_place_is_where_the_users_code_called_a_library() -> None:
    try:
        torch.zeros(2) @ torch.zeros(3)
    except RuntimeError as error:
        assert raised(1, error, "stage").signature.startswith("RuntimeError at test_child.py:")
    try:
        msgspec.json.decode(b"{")
    except msgspec.DecodeError as error:
        assert "test_child.py" in raised(1, error, "stage").signature


def test_our_own_errors_say_what_to_do_and_passwords_are_left_out() -> None:
    told = raised(1, ConfigError("cannot reach postgresql://me:secret@host/db", "check it"), "other")
    assert told.text == "cannot reach postgresql://***@host/db" and told.todo == "check it"
    assert "secret" not in told.detail


def test_closing_something_broken_is_for_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    def close() -> None:
        raise ValueError("cannot be closed")

    closed(close)
    assert "cannot be closed" in capsys.readouterr().err


def test_memory_is_without_what_is_shared() -> None:
    gc.collect()
    before = memory_bytes()
    held = bytearray(256 << 20)  # so much that what is let go meanwhile does not matter
    assert memory_bytes() - before > 128 << 20 and len(held) == 256 << 20


def lines() -> tuple[Line[Any], Line[Any], socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return Line(ours, REPLIES), Line(theirs, ORDERS), ours, theirs


def test_two_that_send_at_the_same_time_do_not_wait_for_each_other() -> None:
    ours, theirs, _, _ = lines()
    order = Discard(1, Staged("x" * 8_000_000, 1))
    reply = Loaded(2, 1, 1, {0: "y" * 8_000_000}, C(0.0, 0.0, 0))
    came: list[Any] = []

    def child() -> None:
        theirs.send(reply)  # neither side reads before it has sent all
        while not came:
            came.extend(theirs.receive(60.0))

    thread = threading.Thread(target=child, daemon=True)
    thread.start()
    ours.send(order)
    heard: list[Any] = []
    while not heard:
        heard = ours.receive(60.0)
    thread.join(60)
    assert heard == [reply] and came == [order]


def test_one_that_hangs_up_still_gets_its_answers() -> None:
    ours, theirs, end, other = lines()
    ours.send(Discard(1, Staged("a", 1)))
    ours.send(Discard(2, Staged("b", 1)))
    end.shutdown(socket.SHUT_WR)
    assert [one.task for one in theirs.receive(60.0)] == [1, 2]
    with pytest.raises(Gone):
        while True:
            assert theirs.receive(60.0) == []
    theirs.send(Up(-1, 1.0))
    assert ours.receive(60.0) == [Up(-1, 1.0)]
    end.close()
    with pytest.raises(Gone):
        for _ in range(100):
            theirs.send(Loaded(2, 1, 1, {0: "y" * 100_000}, C(0.0, 0.0, 0)))
    other.close()


def test_a_gpu_that_is_open_is_found_whatever_opened_it(tmp_path: Path) -> None:
    for number, target in enumerate(("/dev/null", "/dev/nvidiactl", "/dev/nvidia-uvm", "socket:[12]")):
        os.symlink(target, tmp_path / str(number))
    assert not holds_gpu(tmp_path)
    os.symlink("/dev/nvidia3", tmp_path / "9")
    assert holds_gpu(tmp_path)
    assert not holds_gpu(tmp_path / "no such process")
