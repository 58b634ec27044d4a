"""What a probe measures through: send and receive between two ranks, and words among all (source: ours)."""

from __future__ import annotations

from typing import TypeVar

import msgspec
import torch
import torch.distributed as dist

from shoestring.parallel.backends import own_backend
from shoestring.parallel.group import peer_errors

T = TypeVar("T")
_CUDA_TAG = 0


class Wire:
    """A process group of its own beside whatever else the process has: gloo, or NCCL for CUDA.

    Args:
        store: where the ranks find each other; a RendezvousStore, a TCPStore, any.
        rank, size: this process and how many there are.
        device: of the tensors that travel.
        timeout_s: bound on any one call.
        address: of this host as the others reach it; empty: what GLOO_SOCKET_IFNAME or the host's name says.

    Raises (every call):
        PeerLostError: a rank is gone or cannot be reached.
    """

    def __init__(
        self,
        store: dist.Store,
        rank: int,
        size: int,
        device: torch.device,
        timeout_s: float,
        address: str = "",
    ) -> None:
        self.rank = rank
        self.size = size
        self.device = device
        with peer_errors("the ranks could not connect"):
            self._group = own_backend(
                dist.PrefixStore("probe", store), rank, size, device, timeout_s, address
            )

    def exchange(self, peer: int, outgoing: torch.Tensor, incoming: torch.Tensor) -> None:
        """Send to and receive from a peer that does the same, both at once; returns when both are through.

        Args:
            outgoing, incoming: contiguous tensors of one size and dtype.
        """
        with peer_errors(f"rank {peer} did not answer rank {self.rank}"):
            if self.device.type == "cuda":
                self._group._start_coalescing()
            # The receive first: gloo announces it on the same connection, behind whatever is being sent.
            works = [
                self._group.recv([incoming], peer, _CUDA_TAG),
                self._group.send([outgoing], peer, _CUDA_TAG),
            ]
            if self.device.type == "cuda":
                works = [self._group._end_coalescing()]
            for work in works:
                work.wait()
            self._settle()

    def send(self, peer: int, tensor: torch.Tensor) -> None:
        """Send; returns when the tensor may be changed."""
        with peer_errors(f"rank {peer} did not take from rank {self.rank}"):
            self._group.send([tensor], peer, _CUDA_TAG).wait()
            self._settle()

    def receive(self, peer: int, tensor: torch.Tensor) -> None:
        """Receive into the tensor."""
        with peer_errors(f"rank {peer} did not send to rank {self.rank}"):
            self._group.recv([tensor], peer, _CUDA_TAG).wait()
            self._settle()

    def share(self, value: T) -> list[T]:
        """Everybody's value, by rank; what JSON can say. Nobody goes on before all have called."""
        data = msgspec.json.encode(value)
        length = torch.tensor([len(data)], dtype=torch.int64)
        lengths = [int(item) for item in self._gather(length)]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = [row.cpu().numpy().tobytes() for row in self._gather(padded)]
        return [msgspec.json.decode(row[:n], type=type(value)) for row, n in zip(rows, lengths, strict=True)]

    def close(self) -> None:
        """Let go once all are here, so that nobody takes an orderly end for a death."""
        self.share(0)
        self._group.shutdown()

    def _gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        if self.size == 1:
            return [tensor]
        here = tensor.to(self.device)
        rows = [torch.empty_like(here) for _ in range(self.size)]
        with peer_errors("a rank was lost while all told each other"):
            self._group.allgather([rows], [here]).wait()
            self._settle()
        return rows

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
