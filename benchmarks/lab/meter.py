"""What a lab's ranks measure with: plain sockets and a busy loop (source: ours). Standard library alone.

Each rank runs `python meter.py MODE ...` under `Lab.run` and prints a JSON object, empty if another measures:

    in BYTES      all others send BYTES each to rank 0: {"bytes": received, "duration_s": first to last byte}
    out BYTES     rank 0 sends BYTES to each of them: the same, until the last has everything
    echo COUNT    round trips of one byte between rank 1, which prints, and rank 0: {"median_s": ..., ...}
    burn SECONDS  a busy loop in every rank: {"cpu_s": used, "duration_s": passed}
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable

CHUNK_BYTES = 2**18
REACH_S = 10.0
METER_COMMAND = (sys.executable, "-I", "-S", __file__)


def listen() -> socket.socket:
    """Rank 0's listening socket."""
    server = socket.create_server((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), backlog=128)
    server.settimeout(REACH_S)
    return server


def reach() -> socket.socket:
    """A connection to rank 0, which may not be listening yet."""
    until_s = time.monotonic() + REACH_S
    while True:
        try:
            link = socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), 2.0)
        except OSError:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.01)
        else:
            link.settimeout(None)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return link


def send(link: socket.socket, size_bytes: int) -> None:
    """Send so many zeros, and end our side."""
    chunk = memoryview(bytes(CHUNK_BYTES))
    while size_bytes > 0:
        size_bytes -= link.send(chunk[: min(size_bytes, CHUNK_BYTES)])
    link.shutdown(socket.SHUT_WR)


def receive(link: socket.socket) -> int:
    """Bytes until the other side ends."""
    buffer, received = bytearray(CHUNK_BYTES), 0
    while size := link.recv_into(buffer):
        received += size
    return received


def gather(size_bytes: int) -> dict[str, float]:
    """All to rank 0."""
    if os.environ["RANK"] != "0":
        link = reach()
        link.recv(1)
        send(link, size_bytes)
        link.recv(1)
        return {}
    links = connections()
    start_s = time.monotonic()
    for link in links:
        link.sendall(b"!")
    received, open_links = 0, set(links)
    buffer = bytearray(CHUNK_BYTES)
    for link in links:
        link.setblocking(False)
    while open_links:
        for link in select.select(open_links, [], [])[0]:
            size = link.recv_into(buffer)
            received += size
            if not size:
                open_links.discard(link)
    return {"bytes": received, "duration_s": time.monotonic() - start_s}


def scatter(size_bytes: int) -> dict[str, float]:
    """Rank 0 to all."""
    if os.environ["RANK"] == "0":
        links = connections()
        threads = [threading.Thread(target=send, args=(link, size_bytes)) for link in links]
        start_s = time.monotonic()
        for thread in threads:
            thread.start()
        for link in links:
            receive(link)  # ends once the other side has everything
        return {"bytes": size_bytes * len(links), "duration_s": time.monotonic() - start_s}
    link = reach()
    receive(link)
    return {}


def echo(count: int) -> dict[str, float]:
    """Round trips between ranks 1 and 0."""
    rank = int(os.environ["RANK"])
    if rank == 0:
        link, _ = listen().accept()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := link.recv(1):
            link.sendall(data)
    if rank != 1:
        return {}
    link = reach()
    trips_s = []
    for _ in range(count):
        start_s = time.monotonic()
        link.sendall(b"?")
        link.recv(1)
        trips_s.append(time.monotonic() - start_s)
    return {"median_s": statistics.median(trips_s), "first_s": trips_s[0], "worst_s": max(trips_s)}


def burn(duration_s: float) -> dict[str, float]:
    """Keep one core busy."""
    start_s, cpu_s = time.monotonic(), time.process_time()
    while time.monotonic() - start_s < duration_s:
        sum(range(1000))
    return {"cpu_s": time.process_time() - cpu_s, "duration_s": time.monotonic() - start_s}


def connections() -> list[socket.socket]:
    """Rank 0's links to all others."""
    server = listen()
    links = [server.accept()[0] for _ in range(int(os.environ["WORLD_SIZE"]) - 1)]
    for link in links:
        link.settimeout(None)
    return links


MODES: dict[str, tuple[Callable[..., dict[str, float]], type]] = {
    "in": (gather, int),
    "out": (scatter, int),
    "echo": (echo, int),
    "burn": (burn, float),
}

if __name__ == "__main__":
    function, number = MODES[sys.argv[1]]
    print(json.dumps(function(number(sys.argv[2]))))
