"""Runs a schedule over NCCL: the same hops, each lane a stream, what must wait held by events (source: ours).

Not tried on this project's machines, which have no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from shoestring.parallel.rings.connection import Connection
from shoestring.parallel.rings.schedule import START, Hop, Schedule


class StreamExchange:
    """Enqueues everything at once, in the schedule's order, the same on all ranks; nothing waits here.

    Each hop's chunk is one send and one receive in one NCCL group, so neither can block the other. A hop
    only waits for hops before it in the schedule, so an event that is waited on has been recorded.

    Args:
        connections: one for each lane, so that the lanes' kernels do not queue behind one another.
        streams: one for each lane.
        others: as of `engine.Exchange`.
    """

    def __init__(
        self,
        connections: Sequence[Connection],
        streams: Sequence[torch.cuda.Stream],
        schedule: Schedule,
        blocks: Sequence[torch.Tensor],
        result: torch.Tensor | None,
        chunk_items: int,
    ) -> None:
        self._connections = connections
        self._streams = streams
        self._schedule = schedule
        self._chunks = [block.split(chunk_items) if block.numel() else () for block in blocks]
        self._result = result.split(chunk_items) if result is not None and result.numel() else ()
        self._events: dict[tuple[int, int], torch.cuda.Event] = {}
        awaited = {hop.send_after for hop in schedule} | {hop.add_after for hop in schedule}
        self._awaited = awaited - {START}

    def enqueue(self) -> None:
        """Put all hops on the streams."""
        for number, hop in enumerate(self._schedule):
            sends, receives = self._chunks[hop.sends], self._chunks[hop.receives]
            with torch.cuda.stream(self._streams[hop.lane]):
                for chunk in range(max(len(sends), len(receives))):
                    self._hop(number, hop, chunk, chunk < len(sends), chunk < len(receives))

    def _hop(self, number: int, hop: Hop, chunk: int, sends: bool, receives: bool) -> None:
        stream, connection = self._streams[hop.lane], self._connections[hop.lane]
        backend: Any = connection.backend
        device = self._chunks[hop.sends if sends else hop.receives][chunk].device
        if sends and hop.send_after != START:
            stream.wait_event(self._events[(hop.send_after, chunk)])
        target = self._chunks[hop.receives][chunk] if receives else None
        landing = torch.empty_like(target) if target is not None and hop.adds else target
        backend._start_coalescing(device)
        if sends:
            backend.send([self._chunks[hop.sends][chunk]], hop.send_to, 0)
        if landing is not None:
            backend.recv([landing], hop.receive_from, 0)
        backend._end_coalescing(device).wait()
        if target is None or landing is None:
            return
        if hop.adds:
            if hop.add_after != START:
                stream.wait_event(self._events[(hop.add_after, chunk)])
            torch.add(target, landing, out=self._result[chunk] if hop.delivers and self._result else target)
        if number in self._awaited:
            event = torch.cuda.Event()
            event.record(stream)
            self._events[(number, chunk)] = event
