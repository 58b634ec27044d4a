"""From a stage's settings to the stage, made and set up, in the process that computes (source: ours)."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import Stage, StageContext, StreamStage
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.looks import check_stage, kind_of

_MODULES = {
    "code": "code",
    "onnx": "onnx_file",
    "export": "exported",
    "huggingface": "huggingface",
    "images": "images",
    "checkpoint": "checkpoint",
}


def load_stage(config: StageConfig, context: StageContext) -> Stage | StreamStage:
    """Make the stage that `config` names and call its `setup`.

    What the user's own code raises while it is imported, made or set up passes through as it is.

    Raises:
        ConfigError: the model is missing, of the wrong kind or damaged, an option is wrong, or an extra
            package is not installed.
    """
    check_stage(config)
    module = importlib.import_module(f"shoestring.infer.stages.{_MODULES[kind_of(config)]}")
    stage = module.make(config, context)
    setup = getattr(stage, "setup", None)
    if setup is not None:
        _call(setup, context)
    if "torch" in sys.modules:  # else there is nothing that could take a GPU's memory that way
        importlib.import_module("shoestring.infer.stages.devices").hold_to_share(context)
    if not callable(stage) and not isinstance(stage, StreamStage):
        raise ConfigError(
            f"{config.uses} makes a {type(stage).__name__}, which cannot be called with a batch",
            "give its class a method `__call__(self, batch)` that returns columns",
        )
    return stage  # type: ignore[no-any-return]


def _call(setup: Any, context: StageContext) -> None:
    """`setup(context)`, or `setup()` where it takes nothing."""
    if inspect.signature(setup).parameters:
        setup(context)
    else:
        setup()
