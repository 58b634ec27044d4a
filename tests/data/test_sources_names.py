"""Names of files: each its own, the same in every run; versions that tell a change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec

from shoestring.data.row_index import GONE, RowIndex, RowSourceConfig, read_rows
from shoestring.data.sources import files_of, version_of
from tests.data.files import write


def names(*patterns: str) -> list[str]:
    return [file.name for file in files_of(patterns)]


def test_equal_names_get_the_folders_that_tell_them_apart(tmp_path: Path) -> None:
    for name in ("x/2023/a.csv", "x/2024/a.csv", "x/2024/b.csv", "y/2024/a.csv"):
        write(tmp_path / name, b"v\n1\n")
    two = [f"{tmp_path}/x/2023/*.csv", f"{tmp_path}/x/2024/*.csv"]
    assert names(*two) == names(*reversed(two)) == ["2023/a.csv", "2024/a.csv", "b.csv"]
    three = [*two, f"{tmp_path}/y/2024/*.csv"]
    assert names(*three) == ["b.csv", "x/2023/a.csv", "x/2024/a.csv", "y/2024/a.csv"]
    index = RowIndex.build(RowSourceConfig(files=tuple(three)))
    identities = index.identities(0, index.rows)
    assert len(set(identities)) == index.rows == 4 and identities[0] == "b.csv#0"


def test_a_name_that_was_unique_stays_and_is_not_taken_by_another(tmp_path: Path) -> None:
    for name in ("p/2023/a.csv", "q/2023/a.csv", "q/2024/a.csv"):
        write(tmp_path / name, b"v\n1\n")
    found = files_of([f"{tmp_path}/p/**", f"{tmp_path}/q/2023", f"{tmp_path}/q/2024"])
    assert {file.name: file.url for file in found} == {
        "2023/a.csv": f"{tmp_path}/p/2023/a.csv",
        "q/2023/a.csv": f"{tmp_path}/q/2023/a.csv",
        "q/2024/a.csv": f"{tmp_path}/q/2024/a.csv",
    }


def test_one_file_by_several_patterns_is_one_file(tmp_path: Path) -> None:
    write(tmp_path / "d/a.csv", b"v\n1\n")
    path = f"{tmp_path}/d/a.csv"
    patterns = (path, f"{tmp_path}/d/*.csv", f"file://{path}", f"{tmp_path}/d/../d//a.csv")
    assert [file.url for file in files_of(patterns)] == [path]


def test_a_version_tells_another_size_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n')
    about = path.stat()
    index = RowIndex.build(RowSourceConfig(files=(str(path),)))
    assert not read_rows(index, [(0, 1)], 1 << 20)[1]
    path.write_text('{"x": 22}\n')
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert read_rows(index, [(0, 1)], 1 << 20)[1] == {0: GONE}


class Terse(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store of one file, whose listing tells no sizes, as that of a web server."""

    protocol = "terse"

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        found = [{"name": "web/a.jsonl", "size": None, "type": "file"}]
        return found if detail else ["web/a.jsonl"]

    def info(self, path: str, **options: Any) -> Any:
        return {"name": path, "size": 9, "type": "file", "ETag": "tag"}


def test_a_store_whose_listing_tells_no_size_is_asked_for_each_file() -> None:
    fsspec.register_implementation("terse", Terse, clobber=True)
    (file,) = files_of(["terse://web/*.jsonl"])
    assert (file.name, file.size_bytes, file.version) == ("a.jsonl", 9, "tag:9")
    assert version_of(file.url) == file.version
