"""A store on loopback that gives and takes rows at a fixed rate on each connection.

`python -m benchmarks.infer.server GET_S PUT_S` prints its port and serves until its standard input ends.
A request is `G` or `P`, a count, the ids; the answer comes after count x (GET_S or PUT_S), which is all it
costs: nothing is computed, so that the arms have the cores to themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

WIDTH = 256
"""Numbers of a row, float32."""
ROWS = 512
"""Different ones: ids repeat modulo this."""
HEAD = struct.Struct("<ci")
AHEAD_S = 0.0005
"""A timer of the loop fires that late, about."""


def rows_of(ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """The rows of these ids, [n, WIDTH]: as the server has them."""
    return _all()[ids % ROWS]


def _all() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal((ROWS, WIDTH), dtype=np.float32)


class Client:
    """One connection.

    Args:
        port: of the server on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def get(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Fetch rows, [n, WIDTH]."""
        self._socket.sendall(HEAD.pack(b"G", len(ids)) + ids.astype("<i8").tobytes())
        answer = self._file.read(len(ids) * WIDTH * 4)
        return np.frombuffer(answer, "<f4").reshape(len(ids), WIDTH)

    def put(self, ids: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Store a number for each id."""
        body = ids.astype("<i8").tobytes() + values.astype("<f4").tobytes()
        self._socket.sendall(HEAD.pack(b"P", len(ids)) + body)
        if self._file.read(1) != b".":
            raise ConnectionError("the store is gone")

    def close(self) -> None:
        """Hang up."""
        self._file.close()
        self._socket.close()


@contextlib.contextmanager
def serving(get_s: float, put_s: float) -> Iterator[int]:
    """A server in a process of its own; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.infer.server", str(get_s), str(put_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdin and process.stdout
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def _serve(get_s: float, put_s: float) -> None:
    table = _all()

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                what, count = HEAD.unpack(await reader.readexactly(HEAD.size))
                due_s = loop.time() + count * (get_s if what == b"G" else put_s)
                ids = np.frombuffer(await reader.readexactly(8 * count), "<i8")
                if what == b"P":
                    await reader.readexactly(4 * count)
                    answer = b"."
                else:
                    answer = table[ids % ROWS].tobytes()
                if (left_s := due_s - loop.time() - AHEAD_S) > 0:
                    await asyncio.sleep(left_s)
                writer.write(answer)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(float(sys.argv[1]), float(sys.argv[2])))
