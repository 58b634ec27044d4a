"""A stage that is a class or a function of the user's (source: ours)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from shoestring.base.errors import ConfigError
from shoestring.infer.batch import StageContext
from shoestring.infer.config import StageConfig
from shoestring.infer.stages.looks import is_file, split_code

LOADED_AS = "shoestring_stage_"
"""How the modules of stages are called that were loaded from a file."""


def make(config: StageConfig, context: StageContext) -> Any:
    """The class's object, made with `options`; a function with `options` as its keyword arguments.

    Raises:
        ConfigError: there is no such class, or it does not take these options.
    """
    where, name = split_code(config.uses)
    module = _from_file(Path(where)) if is_file(where) else _from_name(where)
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{where} defines no {name}", "check its spelling")
    if not callable(found):
        raise ConfigError(
            f"{config.uses} is a {type(found).__name__}, neither a class nor a function", "name one of these"
        )
    _check_options(config, found)
    if inspect.isclass(found):
        return found(**config.options)
    return functools.partial(found, **config.options) if config.options else found


def _check_options(config: StageConfig, made: Any) -> None:
    """Say which option does not fit before anything is made."""
    try:
        signature = inspect.signature(made)
    except ValueError:
        return  # a built-in that does not tell
    batch = () if inspect.isclass(made) else (None,)
    try:
        signature.bind(*batch, **config.options)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "none"
        raise ConfigError(
            f"{config.uses} does not fit its options: {error}", f"options that it takes: {takes}"
        ) from error


def _from_name(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """A module of its own; what lies beside the file can be imported by it."""
    path = path.resolve()
    name = f"{LOADED_AS}{path.stem}_{abs(hash(str(path))):x}"
    if name in sys.modules:
        return sys.modules[name]
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be imported", "give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
