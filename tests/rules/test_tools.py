"""The rules that other tools keep: imports point down, types are strict, style is clean."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rules.checks import TORCH_PACKAGES
from tests.rules.source import ROOT

BIN = Path(sys.executable).parent


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A tool of this environment, with what it says."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PATH": path},
    )


def contracts() -> dict[str, dict[str, list[str]]]:
    """The import contracts of pyproject.toml by id."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract for contract in settings["tool"]["importlinter"]["contracts"]}


def packages() -> set[str]:
    """The packages right under shoestring/."""
    return {path.parent.name for path in (ROOT / "shoestring").glob("*/__init__.py")}


def test_imports_point_down() -> None:
    done = run("lint-imports")
    assert done.returncode == 0, done.stdout


def test_the_import_contracts_can_be_broken(tmp_path: Path) -> None:
    """The same contracts over a package where base imports data, data holds a cycle, and base loads torch."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(settings[settings.index("[tool.importlinter]") :])
    without_torch = {name.removeprefix("shoestring.") for name in contracts()["torch"]["source_modules"]}
    for package in sorted(packages() | without_torch):
        (tmp_path / "shoestring" / package).mkdir(parents=True)
        (tmp_path / "shoestring" / package / "__init__.py").touch()
    for path in ("recipes/__init__.py", "shoestring/__init__.py", "shoestring/cli.py", "torch/__init__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert run("lint-imports", cwd=tmp_path).returncode == 0
    (tmp_path / "shoestring/base/thing.py").write_text("import torch\nfrom shoestring.data import first\n")
    (tmp_path / "shoestring/data/first.py").write_text("from shoestring.data import second\n")
    (tmp_path / "shoestring/data/second.py").write_text("from shoestring.data import first\n")
    done = run("lint-imports", cwd=tmp_path)
    assert done.returncode == 1
    for contract in ("layers", "cycles", "torch"):
        assert f"{contracts()[contract]['name']} BROKEN" in done.stdout, done.stdout


def test_every_package_stands_in_a_contract() -> None:
    layers = contracts()["layers"]["layers"]
    layered = {name.strip(" ()").removeprefix("shoestring.") for layer in layers for name in layer.split("|")}
    assert packages() <= layered
    without_torch = {name.removeprefix("shoestring.") for name in contracts()["torch"]["source_modules"]}
    assert packages() - TORCH_PACKAGES - {"commands"} <= without_torch


@pytest.mark.timeout(400)
def test_types_are_strict_and_right() -> None:
    done = run("mypy")
    assert done.returncode == 0, done.stdout


def test_the_type_check_is_strict(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def double(x):\n    return 2 * x\n")
    done = run("mypy", "--config-file", str(ROOT / "pyproject.toml"), str(tmp_path / "wrong.py"))
    assert "missing a type annotation" in done.stdout and done.returncode == 1


def test_style_is_clean() -> None:
    done = run("ruff", "check", "--output-format", "concise", ".")
    assert done.returncode == 0, done.stdout
