"""What is known of a file of output, from when it is staged to when it is published (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from shoestring.data.ranges import Range

Ranges = tuple[Range, ...]
IDENTITY, ERROR = "row", "error"
"""Columns of the output that are ours."""


class Staged(msgspec.Struct, frozen=True):
    """A file that a writer has finished, aside: nobody reads it yet.

    Attributes:
        name: within the staging folder of the sink.
        rows: in it; `failed` of them have an error.
        size_bytes, sha256: of the file.
        errors: kind of error (a short text, one of few) -> rows.
        not_numbers: column -> values that are NaN.
        facts: what else the manifest should say of it.
    """

    name: str
    rows: int
    failed: int = 0
    size_bytes: int = 0
    sha256: str = ""
    errors: dict[str, int] = {}
    not_numbers: dict[str, int] = {}
    facts: dict[str, str] = {}


class Output(msgspec.Struct, frozen=True):
    """A shard's output as the ledger has it: committed in the transaction that says `done` of its rows.

    Attributes:
        lease_id: of the shard; the key.
        name: that the file gets in the sink.
        ranges: half-open ranges of positions, in the order of the file's rows.
        staged: what the writer told.
    """

    lease_id: int
    name: str
    ranges: Ranges
    staged: Staged


def file_name(lease_id: int, ranges: Ranges, suffix: str) -> str:
    """The name of a shard's file: by its first position, so that files sort as their rows do.

    Example: `part-000000001000-000007.parquet`.
    """
    return f"part-{ranges[0][0]:012d}-{lease_id:06d}{suffix}"


def add_counts(into: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by kind to others."""
    for key, count in more.items():
        into[key] = count + (into[key] if key in into else 0)
