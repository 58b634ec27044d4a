"""Settings of a job as they are kept: local paths do not depend on where it was started (source: ours)."""

from __future__ import annotations

import os

from shoestring.infer.config import InferConfig, StageConfig


def settled(config: InferConfig) -> InferConfig:
    """The same settings with absolute paths."""
    source = config.source.model_copy(update={"files": tuple(_absolute(one) for one in config.source.files)})
    sink = config.sink.model_copy(update={"path": _absolute(config.sink.path)})
    stages = tuple(_stage(one) for one in config.stages)
    return config.model_copy(update={"source": source, "sink": sink, "stages": stages})


def _stage(stage: StageConfig) -> StageConfig:
    """`file.py:Class` and what is there as a file or folder; `module:Class` and names stay."""
    path, colon, member = stage.uses.rpartition(":")
    if path.endswith(".py"):
        return stage.model_copy(update={"uses": f"{_absolute(path)}{colon}{member}"})
    there = stage.uses and os.path.exists(os.path.expanduser(stage.uses))
    return stage.model_copy(update={"uses": _absolute(stage.uses)}) if there else stage


def _absolute(path: str) -> str:
    return path if not path or "://" in path else os.path.abspath(os.path.expanduser(path))
