"""Child processes as the crew sees them; `kids` has real ones, tests have fakes (source: ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shoestring.infer.wire import Orders, Replies


@dataclass(frozen=True)
class KidEnd:
    """How a child process ended: exit code (-N: signal N), and its last words or the tail of its log."""

    code: int
    words: str


class Kid(Protocol):
    """A child process, from outside."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...

    def fileno(self) -> int:
        """Readable once it has said something or has ended."""
        ...

    def send(self, order: Orders) -> None:
        """Give it an order. One that has ended ignores it."""
        ...

    def receive(self) -> tuple[list[Replies], KidEnd | None]:
        """What it has said since, and how it ended, if it did: then nothing more comes. Never waits."""
        ...

    def stop(self) -> None:
        """Ask it to end; it has nothing to do."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


class Kids(Protocol):
    """Who makes child processes, and waits for them."""

    def start(self, pool: str, device: str) -> Kid:
        """A new one.

        Raises:
            FleetError: there can be none.
        """
        ...

    def wait(self, kids: list[Kid], timeout_s: float) -> list[Kid]:
        """Those of `kids` that have said something or ended, once there is one or the time is over."""
        ...

    def memory_bytes(self, pid: int) -> int:
        """Of a process's own, without what it shares; 0: not known."""
        ...

    def close(self) -> None:
        """End all that are left, at once."""
        ...
