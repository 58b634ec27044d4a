"""What preparing a run of a language model has fixed of its model; without torch (source: ours)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from shoestring.base.errors import ConfigError

PREPARED = "prepared.json"
"""The file, in a run's directory."""


class Prepared(msgspec.Struct, frozen=True):
    """The part of `PREPARED` that says what the model is.

    Attributes:
        settings: of the run; `model` among them.
        tokenizer: path of its tokenizer.
    """

    settings: dict[str, Any]
    tokenizer: str


def read_prepared(run_dir: Path) -> Prepared:
    """What a run was prepared with.

    Raises:
        ConfigError: it was never prepared, or is no run of a language model.
    """
    try:
        prepared = msgspec.json.decode((run_dir / PREPARED).read_bytes(), type=Prepared)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{run_dir.name} has no model yet ({error})", f"go on with it: shoestring resume {run_dir.name}"
        ) from error
    if "model" not in prepared.settings:
        raise ConfigError(f"{run_dir.name} is no run of a language model", "name a run of pretrain")
    return prepared
