"""What the processes of a fleet are called: a letter for what they do, and a number (source: ours)."""

from __future__ import annotations

WORKER, SERVER = "w", "s"


def worker_names(count: int) -> tuple[str, ...]:
    """Of so many workers."""
    return tuple(f"{WORKER}{number}" for number in range(count))


def server_names(count: int) -> tuple[str, ...]:
    """Of so many parameter servers, by rank."""
    return tuple(f"{SERVER}{number}" for number in range(count))


def is_server(name: str) -> bool:
    """Whether a process of this name holds parameters for workers."""
    return name.startswith(SERVER)


def number_of(name: str) -> int:
    """The number in a name: on one host, also that of its device."""
    return int(name.lstrip(WORKER + SERVER))
