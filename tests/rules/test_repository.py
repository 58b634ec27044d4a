"""The rules on the repository as a whole: what stands in it, and what a stranger finds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tests.rules.source import ROOT, tracked_files

# A path of somebody's machine. Written in halves, so that this file does not break its own rule.
MACHINE_PATHS = re.compile(
    "|".join(("/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "Users/[a-z]", "/" + "opt/pypi"))
)
TEXT_SUFFIXES = {"", ".py", ".md", ".toml", ".txt", ".json", ".cfg", ".ini", ".yml", ".yaml", ".html", ".sh"}
MAX_FILE_BYTES = 2**20


def machine_paths(name: str, text: str) -> Iterator[str]:
    """Lines that name a path of one particular machine."""
    for number, line in enumerate(text.splitlines(), start=1):
        if MACHINE_PATHS.search(line):
            yield f"{name}:{number}: {line.strip()[:100]}"


def test_no_file_names_a_path_of_one_machine() -> None:
    assert list(machine_paths("x", "cd /" + "home/jane/shoestring"))
    files = [path for path in tracked_files() if path.suffix in TEXT_SUFFIXES]
    assert len(files) > 20
    found = [
        breach
        for path in files
        for breach in machine_paths(str(path.relative_to(ROOT)), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_no_large_file_is_tracked() -> None:
    large = [str(path.relative_to(ROOT)) for path in tracked_files() if path.stat().st_size > MAX_FILE_BYTES]
    assert not large


def test_the_readme_maps_every_folder() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = [path.parent for path in (ROOT / "shoestring").glob("*/__init__.py")]
    top = [ROOT / name for name in ("recipes", "benchmarks", "tests", "docs")]
    missing = [folder.name for folder in (*packages, *top) if f"{folder.name}/" not in readme]
    assert not missing


def test_the_readme_links_to_files_that_exist() -> None:
    for page in (path for path in tracked_files() if path.suffix == ".md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_tests_mirror_the_package() -> None:
    packages = {path.parent.name for path in (ROOT / "shoestring").glob("*/__init__.py")}
    other = {"rules", "golden", "recipes", "benchmarks"}
    folders = {
        path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("test_*.py"))
    }
    assert folders <= packages | other


def test_the_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    pinned = {
        _plain_name(line) for line in (ROOT / "constraints/cpu.txt").read_text().splitlines() if "==" in line
    }
    assert {_plain_name(name) for name in wanted} <= pinned


def test_scripts_can_be_run() -> None:
    for path in (ROOT / ".ci/run", *(ROOT / "scripts").iterdir()):
        assert path.stat().st_mode & 0o111, path


def _plain_name(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ]", requirement)[0].lower().replace("_", "-")


def test_the_version_stands_in_the_changelog() -> None:
    version = re.search(
        r'__version__ = "(.+)"', (ROOT / "shoestring/__init__.py").read_text(encoding="utf-8")
    )
    assert version is not None
    assert f"## {version[1]}" in Path(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
