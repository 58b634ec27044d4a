"""Typed errors. Each says what happened and what to do about it (source: ours)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER_INFO = re.compile(r"(\w://)[^/@\s]+@")


class ShoestringError(Exception):
    """Base of every error that a user can meet.

    Args:
        what: what happened, with the names and values involved.
        todo: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what, todo)
        self.what = what
        self.todo = todo

    def __str__(self) -> str:
        return f"{self.what}\n  what to do: {self.todo}"


class ConfigError(ShoestringError):
    """A setting is unknown, has the wrong type, or contradicts another."""

    exit_code = 2


class DataError(ShoestringError):
    """Input data is missing, empty or unreadable as a whole."""

    exit_code = 3


class SampleError(ShoestringError):
    """Some samples of a batch cannot be used; the rest can.

    Args:
        failures: sample id -> error text.
    """

    exit_code = 3

    def __init__(self, failures: dict[int, str]) -> None:
        shown = "; ".join(f"sample {sample}: {text}" for sample, text in list(failures.items())[:3])
        super().__init__(f"{len(failures)} samples failed ({shown})", "mend or remove these samples")
        self.failures = failures


class LedgerError(ShoestringError):
    """The ledger refuses an operation, or too large a share of the samples is dead."""

    exit_code = 4


class StoreAwayError(LedgerError):
    """The database that holds the ledger cannot be reached, for longer than was to be borne."""


class RecordError(ShoestringError):
    """The event log of a run cannot be written or read."""

    exit_code = 5


class CheckpointError(ShoestringError):
    """A checkpoint cannot be written, or is damaged."""

    exit_code = 6


class FleetError(ShoestringError):
    """Workers or the coordinator cannot be started, reached or kept alive."""

    exit_code = 7


class TransportError(FleetError):
    """A message did not reach the other side or its answer did not come back; it may be sent again."""


class RunError(ShoestringError):
    """A run is unknown, already in progress, or in the wrong state for what was asked."""

    exit_code = 8


class SinkError(ShoestringError):
    """The output of a job cannot be written, or its place holds something else."""

    exit_code = 9


class InferError(ShoestringError):
    """A stage of a batch inference job has a bug, cannot be set up, or answers what makes no sense."""

    exit_code = 10


class InterruptedRun(ShoestringError):
    """The user interrupted the run; it was checkpointed and can be resumed."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def without_passwords(text: str) -> str:
    """A text without passwords that URLs in it carry."""
    return _USER_INFO.sub(r"\1***@", text)


def settings_without_passwords(settings: Any) -> Any:
    """Settings (mappings, sequences, plain values) whose texts carry none."""
    if isinstance(settings, str):
        return without_passwords(settings)
    if isinstance(settings, Mapping):
        return {key: settings_without_passwords(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [settings_without_passwords(value) for value in settings]
    return settings
