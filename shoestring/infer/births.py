"""What a worker and its nursery say to each other (source: ours)."""

from __future__ import annotations

import msgspec

from shoestring.infer.wire import InferPayload

LOAD, WRITE, STAGE = "load", "write", "stage:"
"""Roles of children; a stage's is `stage:NAME`."""


class Birth(msgspec.Struct, frozen=True, tag=True):
    """A child is wanted.

    Attributes:
        role: `load`, `write` or `stage:NAME`.
        number: of the child among those of its role; with the role it names the log file.
        device, device_share, threads: see StageContext.
    """

    role: str
    number: int
    device: str = "cpu"
    device_share: float = 1.0
    threads: int = 1

    @property
    def log_name(self) -> str:
        """Part of the name of its log file."""
        return f"{self.role.replace(':', '-')}-{self.number}"


class EndOf(msgspec.Struct, frozen=True, tag=True):
    """How did this child end?"""

    pid: int


class Born(msgspec.Struct, frozen=True, tag=True):
    """It is there; its socket and its pidfd come with this message. pid 0: it could not be made."""

    pid: int
    why: str = ""


class End(msgspec.Struct, frozen=True, tag=True):
    """Exit code (-N: signal N; None: it runs) and last words."""

    code: int | None
    words: str = ""


class Settings(msgspec.Struct, frozen=True):
    """What a nursery and its children are given.

    Attributes:
        payload: of the worker.
        folder: of its segments.
        logs: folder of the log files; `worker` is the first part of their names.
        path: `sys.path` of the worker, where a user's modules are found.
    """

    payload: InferPayload
    folder: str
    logs: str
    worker: str
    path: list[str]
