"""Notices that a peer is gone, and hangs up on all (source: ours).

gloo wakes whoever waits for a message when its sender dies; but not if a part of that message had come, and
that wait then lasts for the time-out. A receive that was posted beforehand does fail at once, as soon as some
thread waits for it. So one thread a peer waits for a byte that is sent only as a farewell.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch

from shoestring.base.errors import first_line

# Above the tags of all other messages between two ranks (torch.distributed's own have another prefix).
FAREWELL = 2**30 + 1
NEVER = FAREWELL + 1
FOR_EVER = timedelta(days=3650)  # gloo hangs up on all if this is over
AT_ONCE = timedelta(milliseconds=1)
FAREWELL_TAKES = timedelta(seconds=5)  # a loaded peer may be slow to say that it listens
JOIN_S = 1.0

Lost = Callable[[int, str], None]


class PeerWatch:
    """Threads that wait until a peer ends without a farewell; ranks must all have one on the same backend.

    Args:
        backend: a gloo process group; its other traffic goes on beside.
        peers: the other ranks.
        lost: called once for each peer that is gone, from a thread, with its rank and the backend's words;
            not after `close`.
    """

    def __init__(self, backend: Any, peers: Iterable[int], lost: Lost) -> None:
        self._backend = backend
        self._lost = lost
        self._closing = False
        self._threads: dict[int, threading.Thread] = {}
        for peer in peers:
            byte = torch.empty(1, dtype=torch.uint8)
            try:
                awaited = backend.recv([byte], peer, FAREWELL)
            except RuntimeError as error:
                lost(peer, first_line(error))
                continue
            thread = threading.Thread(
                target=self._wait, args=(peer, awaited, byte), name=f"peer-{peer}", daemon=True
            )
            self._threads[peer] = thread
            thread.start()

    def close(self, friendly: bool) -> None:
        """Hang up on all peers and end the threads; may be called again.

        Args:
            friendly: say farewell first, so that peers who still have other business go on with it.
        """
        if self._closing:
            return
        self._closing = True
        if friendly:
            for peer in self._threads:
                with contextlib.suppress(RuntimeError):  # gone before us
                    byte = torch.zeros(1, dtype=torch.uint8)
                    self._backend.send([byte], peer, FAREWELL).wait(FAREWELL_TAKES)
        hang_up(self._backend, self._threads)
        for thread in self._threads.values():
            if thread is not threading.current_thread():
                thread.join(JOIN_S)

    def _wait(self, peer: int, awaited: Any, byte: torch.Tensor) -> None:
        try:
            awaited.wait(FOR_EVER)
        except RuntimeError as error:
            if not self._closing:
                self._lost(peer, first_line(error))


def hang_up(backend: Any, peers: Iterable[int]) -> None:
    """Close every pair of a gloo backend now, also under a thread that waits; waiting peers get an error.

    gloo has no abort. But a receive that times out closes all pairs of its group, so let one time out; at a
    peer that is gone already it fails without doing so, hence at each.
    """
    for peer in peers:
        try:
            backend.recv([torch.empty(1, dtype=torch.uint8)], peer, NEVER).wait(AT_ONCE)
        except RuntimeError as error:
            if "imed out" in str(error):
                return
