"""Imports that children of a stage have in common, made once before they are forked (source: ours)."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from shoestring.base.errors import ConfigError
from shoestring.infer.births import Settings
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.stages.looks import kind_of, split_code

FORK_SAFE = (
    "numpy", "torch", "transformers", "tokenizers", "safetensors", "PIL", "scipy", "sklearn", "onnxruntime",
    "pandas",
)  # fmt: skip
"""Importing these touches no device and leaves no thread that a fork would miss. A user's own module may do
anything: it is imported in the child."""

NEEDS = {
    "huggingface": ("torch", "transformers"), "onnx": ("onnxruntime",), "export": ("torch",),
    "checkpoint": ("torch",), "images": ("PIL",),
}  # fmt: skip


def preload(settings: Settings) -> None:
    """Import what the job's stages will; one that fails is told in the log, and again by the child that
    needs it."""
    for name in sorted(wanted(settings)):
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  a broken installation may raise anything
            traceback.print_exc()


def wanted(settings: Settings) -> set[str]:
    """Names of modules that are worth it."""
    config = InferConfig.model_validate_json(settings.payload.config)
    names = {"shoestring.infer.predicting"}
    for stage in config.stages:
        names |= set(_of(stage, [Path(one) for one in settings.path]))
    return names


def _of(stage: StageConfig, path: list[Path]) -> Iterator[str]:
    try:
        kind = kind_of(stage)
        if kind == "code":
            yield from _imports(_file_of(split_code(stage.uses)[0], path))
            return
    except ConfigError:  # the child meets it and tells
        return
    yield from NEEDS[kind]


def _file_of(module: str, path: list[Path]) -> Path | None:
    """The file of a module, looked up without importing its parents."""
    if module.endswith(".py"):
        return Path(module)
    inside = Path(*module.split("."))
    places = [base / inside for base in path]
    found = [one for place in places for one in (place.with_suffix(".py"), place / "__init__.py")]
    return next((one for one in found if one.is_file()), None)


def _imports(file: Path | None) -> Iterator[str]:
    """Top-level imports of a file that are safe to make here; none where it cannot be read."""
    if file is None:
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # the child meets it and tells
        return
    for node in tree.body:
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module]
        else:
            continue
        yield from (
            top for name in names if (top := name.split(".")[0]) in FORK_SAFE and top not in sys.modules
        )
