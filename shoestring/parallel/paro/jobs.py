"""Chains of collectives that follow one another, many chains at a time, in the same order on all ranks
(source: ours)."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

from shoestring.parallel.paro.exchange import Pending

Chain = Generator[Pending, None, None]
_ENDED = 1 << 30


class Jobs:
    """Runs chains. A chain yields a collective that it has issued and is resumed once that is over.

    Which of two collectives ends first depends on the network, and ranks would disagree; so a chain issues
    its k-th collective only after the chain before it has issued its own k-th.
    """

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def start(self, chain: Chain) -> None:
        """Add a chain behind the others."""
        self._jobs.append(_Job(chain))
        self.poll()

    def poll(self) -> None:
        """Move every chain on as far as it goes without waiting."""
        before = _ENDED
        for job in self._jobs:
            while job.stage < before and job.ready():
                job.resume()
            before = job.stage
        while self._jobs and self._jobs[0].stage == _ENDED:
            self._jobs.popleft()

    def drain(self, keep: int) -> None:
        """Wait until at most `keep` chains are under way.

        Raises:
            PeerLostError: a peer is gone.
        """
        while len(self._jobs) > keep:
            self._jobs[0].wait()
            self.poll()

    def hold(self, keep: int) -> None:
        """Wait until at most `keep` chains are in their first collective.

        Raises:
            PeerLostError: a peer is gone.
        """
        while True:
            first = [job for job in self._jobs if job.stage <= 1]
            if len(first) <= keep:
                return
            first[0].wait()
            self.poll()

    def clear(self) -> None:
        """Forget all chains; their collectives have failed or will."""
        self._jobs.clear()


class _Job:
    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._pending: Pending | None = None
        self.stage = 0  # collectives issued; or ended

    def ready(self) -> bool:
        return self.stage != _ENDED and (self._pending is None or self._pending.done())

    def wait(self) -> None:
        if self._pending is not None:
            self._pending.wait()

    def resume(self) -> None:
        self.wait()
        try:
            self._pending = next(self._chain)
            self.stage += 1
        except StopIteration:
            self._pending, self.stage = None, _ENDED
