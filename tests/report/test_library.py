"""The bundled Vega is kept between runs, and never believed when it is damaged."""

from __future__ import annotations

from pathlib import Path

from shoestring.report.library import vega_library


class Maker:
    """Makes another bundle every time, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> str:
        self.made += 1
        return f"bundle {self.made}\nwith lines\n"


def test_a_bundle_is_made_once(tmp_path: Path) -> None:
    make = Maker()
    assert [vega_library(tmp_path / "below", make) for _ in range(3)] == ["bundle 1\nwith lines\n"] * 3


def test_a_damaged_copy_is_made_anew(tmp_path: Path) -> None:
    make = Maker()
    vega_library(tmp_path, make)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"with", b"wild"))
    assert vega_library(tmp_path, make) == vega_library(tmp_path, make) == "bundle 2\nwith lines\n"
    kept.write_bytes(b"\xff\xfe")
    assert vega_library(tmp_path, make) == "bundle 3\nwith lines\n"


def test_a_cache_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert vega_library(tmp_path / "file" / "below", Maker()) == "bundle 1\nwith lines\n"
