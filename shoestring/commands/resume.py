"""`shoestring resume`."""

from __future__ import annotations

from pathlib import Path

from shoestring.commands.common import INFER
from shoestring.fleet.rundirs import find_run


def resume(
    run: str, sets: tuple[str, ...], toml_files: tuple[Path, ...], runs_dir: Path, as_json: bool
) -> int:
    """Go on with a run of any kind; returns the exit code.

    Raises:
        RunError: there is no such run.
    """
    run_dir, about = find_run(runs_dir, run)
    if about.job == INFER:
        from shoestring.commands.infer import resume as go_on  # each kind of run loads its own
    else:
        from shoestring.commands.run import resume as go_on
    return go_on(run_dir, about, toml_files, sets, as_json)
