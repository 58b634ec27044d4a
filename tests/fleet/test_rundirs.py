"""Directories of runs: names, and finding one again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from shoestring.base.clock import FakeClock
from shoestring.base.errors import RunError
from shoestring.fleet.rundirs import ABOUT, About, find_run, new_run_dir

CLOCK = FakeClock()


def test_runs_without_a_name_are_numbered(tmp_path: Path) -> None:
    made = [new_run_dir(tmp_path / "runs", "tiny", "", CLOCK).name for _ in range(3)]
    assert made == ["tiny-1", "tiny-2", "tiny-3"]


@pytest.mark.parametrize("name", ["../up", "a b", "-x", "a/b"])
def test_a_name_that_is_no_directory_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError, match="cannot name a run"):
        new_run_dir(tmp_path, "tiny", name, CLOCK)


def test_a_name_that_is_taken_is_refused_with_what_to_do(tmp_path: Path) -> None:
    new_run_dir(tmp_path, "tiny", "mine", CLOCK)
    with pytest.raises(RunError, match="resume mine"):
        new_run_dir(tmp_path, "tiny", "mine", CLOCK)


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    run_dir = new_run_dir(tmp_path, "tiny", "mine", CLOCK)
    about = About("mine", "tiny", "infer", 1.0)
    (run_dir / ABOUT).write_bytes(msgspec.json.encode(about))
    assert find_run(tmp_path, "mine") == (run_dir, about) == find_run(tmp_path / "other", str(run_dir))
    with pytest.raises(RunError, match="runs there: mine"):
        find_run(tmp_path, "yours")
