"""Messages with tensors between two processes, over TCP (source: ours).

A frame is a header (bytes that the two sides agree on, msgpack here) and a payload of raw numbers, read into
tensors whose size the reader knows before. Who connects shows a token first; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import struct
import threading
from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from shoestring.base.clock import SystemClock
from shoestring.parallel.backends import interfaces
from shoestring.parallel.group import PeerLostError

_HEAD = struct.Struct(">IQ")
HEADER_LIMIT_BYTES = 1 << 20
TOKEN_BYTES = 32
TOKEN_TIMEOUT_S = 10.0
STRANGERS = 64
"""Connections at a time that have not shown the token yet."""
BACKLOG = 128
RETRY_S = 0.1


class Line:
    """One connection; one side asks, the other answers.

    Raises (every call):
        PeerLostError: the other side is gone, silent for too long, or sends what was not asked for.
    """

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._due_bytes = 0
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def send(self, header: bytes, *payload: Tensor) -> None:
        """A header and the numbers of tensors, wherever they are."""
        parts = [_bytes_of(tensor) for tensor in payload]
        try:
            self._link.sendall(_HEAD.pack(len(header), sum(part.nbytes for part in parts)) + header)
            for part in parts:
                self._link.sendall(part)
        except OSError as error:
            raise PeerLostError(f"could not send: {error}") from error

    def receive(self, limit_bytes: int = HEADER_LIMIT_BYTES) -> tuple[bytes, int]:
        """The next header, of so many bytes at most, and the bytes of its payload: `receive_into` has to
        follow where there are any."""
        header_bytes, self._due_bytes = _HEAD.unpack(self._read(_HEAD.size))
        if header_bytes > limit_bytes:
            raise PeerLostError(f"a header of {header_bytes} bytes is not ours")
        return bytes(self._read(header_bytes)), self._due_bytes

    def receive_into(self, *tensors: Tensor) -> None:
        """The payload, into contiguous tensors on the CPU."""
        parts = [_bytes_of(tensor) for tensor in tensors]
        due_bytes = sum(part.nbytes for part in parts)
        if due_bytes != self._due_bytes:
            raise PeerLostError(f"{self._due_bytes} bytes came where {due_bytes} are due")
        self._due_bytes = 0
        for part in parts:
            self._fill(part)

    def patience(self, timeout_s: float | None) -> None:
        """How long the other side may be silent in the middle of something; None: for ever, as long as its
        machine answers."""
        self._link.settimeout(timeout_s)

    def close(self) -> None:
        """Hang up; whoever waits on the other side is told."""
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def _read(self, count: int) -> bytearray:
        found = bytearray(count)
        self._fill(memoryview(found))
        return found

    def _fill(self, view: memoryview) -> None:
        done = 0
        while done < view.nbytes:
            try:
                got = self._link.recv_into(view[done:])
            except OSError as error:
                raise PeerLostError(f"nothing was heard: {error}") from error
            if not got:
                raise PeerLostError("the other side has hung up")
            done += got


class Listener:
    """Takes connections from who knows the token, each in a thread of its own.

    Args:
        loopback: all are on this machine: nothing listens beyond it.
        serve: called with each line; the line is closed when it returns or raises PeerLostError.

    Attributes:
        address: for `connect`; a secret, as the token is in it.
    """

    def __init__(self, loopback: bool, serve: Callable[[Line], None]) -> None:
        self._serve = serve
        self._closed = False
        self._strangers = threading.Semaphore(STRANGERS)
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._socket = socket.create_server((own_address(loopback), 0), backlog=BACKLOG)
        host, port = self._socket.getsockname()[:2]
        self.address = json.dumps([host, port, self._token.hex()]).encode()
        self._clock = SystemClock()
        self._lines: set[Line] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        """Take no more, and hang up on all."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            lines = list(self._lines)
        for line in lines:
            line.close()

    def _accept(self) -> None:
        while True:
            self._strangers.acquire()
            try:
                link, _ = self._socket.accept()
            except OSError:
                self._strangers.release()
                if self._closed:
                    return
                self._clock.sleep(RETRY_S)  # too many open files, say: others wait in the queue
                continue
            link.settimeout(TOKEN_TIMEOUT_S)
            threading.Thread(target=self._take, args=(Line(link),), name="line", daemon=True).start()

    def _take(self, line: Line) -> None:
        with self._lock:
            self._lines.add(line)
        try:
            if self._is_known(line):
                line.patience(None)
                line.send(b"")
                self._serve(line)
        except PeerLostError:
            return  # it will be back, or is gone
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()

    def _is_known(self, line: Line) -> bool:
        try:
            shown, _ = line.receive(TOKEN_BYTES)
            return hmac.compare_digest(shown, self._token)
        finally:
            self._strangers.release()


def connect(address: bytes, timeout_s: float) -> Line:
    """A line to a listener.

    Raises:
        PeerLostError: nobody is there, or the token is another one's.
    """
    host, port, token = json.loads(address)
    try:
        link = socket.create_connection((host, port), timeout=timeout_s)
    except OSError as error:
        raise PeerLostError(f"{host}:{port} does not answer: {error}") from error
    line = Line(link)
    try:
        line.send(bytes.fromhex(token))
        line.receive()
    except PeerLostError:
        line.close()
        raise
    return line


def own_address(loopback: bool) -> str:
    """Where this machine is found: on the interface that GLOO_SOCKET_IFNAME names, else as its host name
    resolves, which is how gloo chooses.

    Raises:
        PeerLostError: the interface has no address.
    """
    if loopback:
        return "127.0.0.1"
    names = interfaces()
    if not names:
        return socket.gethostbyname(socket.gethostname())
    name, known = names[0], psutil.net_if_addrs()
    for one in known[name] if name in known else ():
        if one.family == socket.AF_INET:
            return str(one.address)
    raise PeerLostError(f"the interface {name} has no address")


def _bytes_of(tensor: Tensor) -> memoryview:
    """The tensor's memory, or that of its copy on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
