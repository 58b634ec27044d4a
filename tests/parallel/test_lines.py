"""Lines between processes: numbers arrive as they are, strangers and wrong sizes are turned away."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shoestring.parallel.group import PeerLostError
from shoestring.parallel.lines import Line, Listener, connect, own_address
from shoestring.train.servers.packing import pack, packed_bytes, unpack

TIMEOUT_S = 10.0


def echo(line: Line) -> None:
    """Sends each frame back."""
    while True:
        header, size_bytes = line.receive()
        payload = torch.empty(size_bytes, dtype=torch.uint8)
        line.receive_into(payload)
        line.send(header, payload)


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener(True, echo)
    yield made
    made.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_headers_and_numbers_arrive_as_they_are(listener: Listener, dtype: torch.dtype) -> None:
    line = connect(listener.address, TIMEOUT_S)
    sent = torch.arange(5000).reshape(50, 100).t().to(dtype)  # not contiguous
    for header in (b"", b"about it"):
        line.send(header, sent, torch.empty(0), sent[0])
        assert line.receive()[0] == header
        whole, first = torch.empty(100, 50, dtype=dtype), torch.empty(50, dtype=dtype)
        line.receive_into(whole, first)
        assert torch.equal(whole, sent) and torch.equal(first, sent[0])
    line.close()


def test_who_does_not_know_the_token_is_not_served(listener: Listener) -> None:
    host, port, token = json.loads(listener.address)
    wrong = json.dumps([host, port, "00" * (len(token) // 2)]).encode()
    with pytest.raises(PeerLostError, match="hung up"):
        connect(wrong, TIMEOUT_S)
    line = connect(listener.address, TIMEOUT_S)  # others are served as before
    line.send(b"x")
    assert line.receive() == (b"x", 0)
    line.close()


def test_a_stranger_cannot_make_us_reserve_memory(listener: Listener) -> None:
    host, port, _ = json.loads(listener.address)
    with socket.create_connection((host, port), timeout=TIMEOUT_S) as stranger:
        stranger.sendall(struct.pack(">IQ", 1 << 31, 1 << 50))
        assert stranger.recv(1) == b""


def test_nothing_listens_beyond_this_machine_where_all_are_on_it(listener: Listener) -> None:
    assert json.loads(listener.address)[0] == own_address(True) == "127.0.0.1"


def test_the_interface_that_gloo_is_told_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address(False) == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    with pytest.raises(PeerLostError, match="nosuch0"):
        own_address(False)


def test_a_payload_of_another_size_is_an_error(listener: Listener) -> None:
    line = connect(listener.address, TIMEOUT_S)
    line.send(b"", torch.zeros(3))
    line.receive()
    with pytest.raises(PeerLostError, match="12 bytes came where 16 are due"):
        line.receive_into(torch.zeros(4))
    line.close()


def test_hanging_up_wakes_who_waits() -> None:
    waits = threading.Event()

    def silent(line: Line) -> None:
        waits.set()
        line.receive()

    listener = Listener(True, silent)
    line = connect(listener.address, TIMEOUT_S)
    assert waits.wait(TIMEOUT_S)
    listener.close()
    with pytest.raises(PeerLostError):
        line.receive()
    with pytest.raises(PeerLostError, match="does not answer"):
        connect(listener.address, TIMEOUT_S)


SHAPES = st.lists(st.lists(st.integers(0, 5), max_size=3), max_size=6)
TYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.float64])


@given(SHAPES, st.lists(TYPES, min_size=6, max_size=6))
def test_what_was_packed_comes_out_again(shapes: list[list[int]], types: list[torch.dtype]) -> None:
    tensors = [torch.randint(0, 100, shape).to(t) for shape, t in zip(shapes, types, strict=False)]
    packed = pack(tensors)
    assert packed.numel() == packed_bytes(tensors)
    found = [torch.full_like(tensor, 7) for tensor in tensors]
    unpack(packed, found)
    assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True))
