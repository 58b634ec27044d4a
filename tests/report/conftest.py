"""A finished run on disk, with its page; without Vega, which takes seconds to bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shoestring.report.page import write_page
from tests.report.records import LIBRARY, whole_run


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its `report.html`; nobody may change it."""
    run_dir = whole_run(tmp_path_factory.mktemp("run"))
    write_page(run_dir, LIBRARY)
    return run_dir


@pytest.fixture
def run_dir(made_once: Path, tmp_path: Path) -> Path:
    """A finished run with its `report.html`, to do anything with."""
    return Path(shutil.copytree(made_once, tmp_path / "run"))
