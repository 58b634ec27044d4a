"""Runs that are through, kept until the record is written: hours of measuring survive Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import commit


class Kept:
    """One file a run. Runs in other settings are passed over, those of another commit too.

    Args:
        folder: of the files; remove it to measure anew.
        setting: in which the runs are taken.
    """

    def __init__(self, folder: Path, setting: dict[str, Any]) -> None:
        self._folder = folder
        self._setting = {**setting, "commit": commit()}

    def find(self, words: Sequence[str]) -> dict[str, Any] | None:
        """The run of these words, where it was taken in this very setting."""
        path = self._path(words)
        if not path.exists() or self._setting["commit"].endswith("+"):  # what has changed is not known
            return None
        kept = json.loads(path.read_text())
        run: dict[str, Any] = kept["run"]
        return run if kept["setting"] == self._setting else None

    def add(self, words: Sequence[str], run: dict[str, Any]) -> None:
        """Keep a run."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(words)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"setting": self._setting, "run": run}))
        part.replace(path)

    def _path(self, words: Sequence[str]) -> Path:
        return self._folder / f"{'-'.join(words).replace(' ', '_')}.json"
