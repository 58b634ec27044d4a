"""Which files are found, and which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from shoestring.base.errors import DataError
from shoestring.data.sources import (
    SourceConfig,
    SourceFile,
    find_files,
    name_hash,
    split_files,
    standard_library,
)
from tests.data.files import write


def names(files: tuple[SourceFile, ...] | list[SourceFile]) -> list[str]:
    return [file.name for file in files]


def many(count: int, size_bytes: int = 100) -> list[SourceFile]:
    return [SourceFile(f"a/{n}.txt", f"/x/a/{n}.txt", size_bytes, "1") for n in range(count)]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe("/corpus/one.txt", b"one")
    system.pipe("/corpus/deep/two.md", b"two")
    yield system
    system.rm("/corpus", recursive=True)


def test_the_default_is_the_standard_library_without_tests_and_packages() -> None:
    found = names(find_files(SourceConfig()))
    assert {"argparse.py", "json/decoder.py"} <= set(found)
    folders = {folder for name in found for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    assert found == sorted(found)


def test_tests_are_taken_on_demand_and_packages_never(tmp_path: Path) -> None:
    for name in ("a.py", "test/b.py", "site-packages/c.py", "d/__pycache__/e.py", "d/f.txt"):
        write(tmp_path / name, b"x = 1\n")
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    assert names(standard_library(str(tmp_path), include_tests=False)) == ["a.py"]
    assert sorted(names(standard_library(str(tmp_path), include_tests=True))) == ["a.py", "test/b.py"]


def test_a_python_without_source_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.files"):
        standard_library(str(tmp_path), include_tests=True)


def test_patterns_folders_and_files_are_found_once_in_order(tmp_path: Path) -> None:
    for name in ("docs/b.md", "docs/deep/er/a.md", "docs/c.txt", "more/z.md"):
        write(tmp_path / name, b"text")
    patterns = (
        f"{tmp_path}/docs/**/*.md",
        f"{tmp_path}/more",
        f"{tmp_path}/docs/c.txt",
        f"{tmp_path}/docs/b.md",
    )
    found = find_files(SourceConfig(files=patterns))
    assert names(found) == ["b.md", "c.txt", "deep/er/a.md", "z.md"]
    assert found[0].size_bytes == 4 and found[0].version


def test_names_do_not_depend_on_where_the_root_lies(tmp_path: Path) -> None:
    for root in ("here", "far/away"):
        write(tmp_path / root / "x/a.md", b"text")
    here, away = (find_files(SourceConfig(files=(f"{tmp_path}/{r}/**/*.md",))) for r in ("here", "far/away"))
    assert names(here) == names(away) == ["x/a.md"]
    assert here[0].url != away[0].url


def test_any_fsspec_url_will_do(memory: fsspec.AbstractFileSystem) -> None:
    found = find_files(SourceConfig(files=("memory://corpus/**",)))
    assert names(found) == ["deep/two.md", "one.txt"]
    assert [fsspec.open(file.url).open().read() for file in found] == [b"two", b"one"]


@pytest.mark.parametrize("pattern", ["nothing/**/*.md", "nothing.txt", "nowhere://x/y.txt"])
def test_what_matches_nothing_is_named(tmp_path: Path, pattern: str) -> None:
    if "://" not in pattern:
        pattern = f"{tmp_path}/{pattern}"
    with pytest.raises(DataError) as error:
        find_files(SourceConfig(files=(pattern,)))
    assert pattern in error.value.what and error.value.todo


def test_empty_data_is_a_clear_error(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"")
    with pytest.raises(DataError, match="empty"):
        find_files(SourceConfig(files=(f"{tmp_path}/*.txt",)))


def test_the_split_is_a_fixed_share_by_name_alone() -> None:
    files = many(2000)
    split = split_files(files, 0.04)
    assert sorted([*split.train, *split.heldout], key=lambda f: f.name) == sorted(files, key=lambda f: f.name)
    assert 0.03 < len(split.heldout) / len(files) < 0.05
    assert all(name_hash(file.name) < 0.04 for file in split.heldout)
    fewer = split_files(files[:1000], 0.04)
    assert set(fewer.heldout) == set(split.heldout) & set(files[:1000])


def test_one_large_file_is_never_most_of_the_held_out_text() -> None:
    files = many(300)
    large = next(file for file in files if name_hash(file.name) < 0.04)
    grown = [SourceFile(f.name, f.url, 1000 if f is large else f.size_bytes, f.version) for f in files]
    assert large.name in names(split_files(files, 0.04).heldout)
    assert large.name not in names(split_files(grown, 0.04).heldout)


def test_something_is_held_out_of_few_files() -> None:
    for count in range(2, 12):
        split = split_files(many(count), 0.01)
        assert len(split.heldout) == 1 and len(split.train) == count - 1


def test_a_single_file_is_split_by_document(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"line\n" * 100_000)
    split = split_files([file], 0.04)
    train, heldout = split.train[0].part, split.heldout[0].part
    assert train and heldout and (train.heldout, heldout.heldout) == (False, True) and train.every == 25
