"""Recipes and jobs by name, and where commands print."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from shoestring.base.config import load_config
from shoestring.base.errors import ConfigError
from shoestring.fleet.rundirs import About

if TYPE_CHECKING:  # it loads torch, which a job over rows may not need
    from shoestring.train.runs import Job, JobConfig

JOBS: Mapping[str, str] = MappingProxyType({"pretrain": "shoestring.jobs.pretrain:PretrainJob"})
INFER = "infer"
"""The job of runs that `shoestring infer` has started; they have no recipe and no checkpoint."""


def load_recipe(name: str, toml_files: tuple[Path, ...], sets: tuple[str, ...]) -> JobConfig:
    """A recipe's settings with the user's laid over them.

    Raises:
        ConfigError: there is no such recipe, or a setting is unknown or wrong.
    """
    from recipes import RECIPES

    if name not in RECIPES:
        raise ConfigError(f"there is no recipe {name!r}", f"recipes: {', '.join(sorted(RECIPES))}")
    module, _, function = RECIPES[name].partition(":")
    recipe: Callable[[], JobConfig] = getattr(importlib.import_module(module), function)
    return load_config(recipe(), toml_files, sets)


def load_job(config: JobConfig) -> Job:
    """The job that these settings are for."""
    module, _, name = JOBS[config.job].partition(":")
    made: Job = getattr(importlib.import_module(module), name)(config)
    return made


def reload_config(
    run_dir: Path, about: About, toml_files: tuple[Path, ...], sets: tuple[str, ...]
) -> JobConfig:
    """The settings that a run was started with, with changes laid over them.

    Raises:
        ConfigError: as above, or a setting that cannot be changed any more.
    """
    return load_recipe(about.recipe, (run_dir / "config.toml", *toml_files), sets)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")
    sys.stdout.flush()
