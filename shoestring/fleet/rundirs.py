"""The directories of runs: a fresh one, or that of a run by its name (source: ours)."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from shoestring.base.clock import Clock
from shoestring.base.errors import RunError

ABOUT = "run.json"


class About(msgspec.Struct, frozen=True):
    """What a run directory says about itself."""

    name: str
    recipe: str
    job: str
    made_wall_s: float


def new_run_dir(runs_dir: Path, recipe: str, name: str, clock: Clock) -> Path:
    """A fresh directory for a run.

    Raises:
        RunError: the name is taken, or not fit for a directory.
    """
    if name and not re.fullmatch(r"[\w][\w.-]*", name):
        raise RunError(f"{name!r} cannot name a run", "use letters, digits, '.', '_' and '-'")
    base = name or recipe
    candidates = [base] if name else [f"{base}-{i}" for i in range(1, 100_000)]
    runs_dir.mkdir(parents=True, exist_ok=True)
    for candidate in candidates:
        try:
            (runs_dir / candidate).mkdir()
        except FileExistsError:
            continue
        return runs_dir / candidate
    raise RunError(
        f"there is a run {name!r} in {runs_dir} already",
        f"choose another --name, or: shoestring resume {name}",
    )


def find_run(runs_dir: Path, name: str) -> tuple[Path, About]:
    """The directory of a run by name or path.

    Raises:
        RunError: there is no such run.
    """
    for path in (runs_dir / name, Path(name)):
        if (path / ABOUT).is_file():
            return path, msgspec.json.decode((path / ABOUT).read_bytes(), type=About)
    known = ", ".join(sorted(p.parent.name for p in runs_dir.glob(f"*/{ABOUT}"))) or "none"
    raise RunError(f"there is no run {name!r} in {runs_dir}", f"runs there: {known}")
