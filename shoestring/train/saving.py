"""A process's part of a checkpoint (source: ours)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from shoestring.base.errors import CheckpointError
from shoestring.fleet.checkpoints import file_checksum
from shoestring.parallel import tensorfiles

Files = dict[str, tuple[int, str]]
"""File name -> (bytes, sha256)."""


def write_part(tensors: dict[str, Tensor], directory: str, rank: int) -> tuple[Files, str]:
    """Write it; what goes wrong is for the coordinator to hear, and ends nobody.

    Returns:
        The files, and what went wrong; empty where nothing did.
    """
    try:
        written = tensorfiles.write(tensors, Path(directory), rank)
        return {path.name: file_checksum(path) for path in written}, ""
    except CheckpointError as problem:
        return {}, problem.what
