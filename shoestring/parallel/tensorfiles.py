"""Tensors of a checkpoint: torch.distributed.checkpoint into safetensors files, no pickle anywhere.

Each rank writes its part of the (deduplicated) tensors; any number of ranks can read them back.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem

from shoestring.base.errors import CheckpointError


def write(tensors: dict[str, torch.Tensor], directory: Path, rank: int) -> list[Path]:
    """Write this rank's part and sync it. Ranks do not talk: what several hold, one is given to write.

    Args:
        tensors: name -> tensor or piece; nothing that another rank writes, too.
        directory: exists already.

    Returns:
        The files that this rank has written.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    if not tensors:
        return []
    try:
        with _quiet():
            writer = _BoxWriter(str(directory), save_distributed=True)
            writer.part = rank
            dcp.save(dict(tensors), storage_writer=writer, planner=_OnePartPlanner(), no_dist=True)
        files = sorted(directory.glob(f"shard-{rank + 1:05d}-*"))
        for path in files:
            _sync(path)
    except (OSError, CheckpointException, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(
            f"cannot write to {directory}: {lines[-1] if lines else error}", "free some space"
        ) from error
    return files


def read(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    """Fill `tensors` in place from a checkpoint, whatever number of ranks wrote it.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or a file cannot be read.
    """
    target = dict(tensors)
    try:
        with _quiet():
            dcp.load(target, storage_reader=HuggingFaceStorageReader(str(directory)), no_dist=True)
    except (OSError, CheckpointException, RuntimeError, KeyError, ValueError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(
            f"cannot restore {directory}: {lines[-1] if lines else type(error).__name__}",
            "resume with the settings that the run was started with",
        ) from error
    with torch.no_grad():
        for name, tensor in tensors.items():
            if target[name] is not tensor:
                tensor.copy_(target[name])


class _BoxWriter(HuggingFaceStorageWriter):
    """A file holds one tensor under a name; where a rank holds several boxes of it, each further one goes to
    another file."""

    part = 0

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name the files after this rank, which plans alone."""
        return [dataclasses.replace(plan, storage_data={"shard_index": self.part + 1}) for plan in plans]

    def _split_by_storage_plan(
        self, storage_plan: dict[str, int] | None, items: list[WriteItem]
    ) -> dict[int, list[WriteItem]]:
        files: dict[int, list[WriteItem]] = {}
        seen: dict[str, int] = {}
        for item in items:
            number = seen[item.index.fqn] = (seen[item.index.fqn] if item.index.fqn in seen else 0) + 1
            files.setdefault(number, []).append(item)
        return files


class _OnePartPlanner(DefaultSavePlanner):
    """Plans a part for itself; the default planner would miss the other ranks' parts."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        self.global_plan, self.metadata = create_default_global_save_plan(all_plans)
        return self.global_plan, self.metadata


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
