"""What errors say in one line."""

from __future__ import annotations

import pytest

from shoestring.base.errors import (
    DataError,
    first_line,
    settings_without_passwords,
)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\nand more"), "bad"),
        (EOFError(), "EOFError"),
        (OSError("\n"), "OSError"),
        (DataError("the file is cut", "bring it back"), "the file is cut"),
    ],
)
def test_an_error_has_a_first_line_whatever_it_says(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_settings_are_told_without_the_passwords_of_urls() -> None:
    settings = {
        "source": {"files": ("s3://me:secret@store/a", "plain@file")},
        "sink": {"path": "ftp://me:secret@host/out"},
        "stages": [{"options": {"at": "http://x:secret@y/", "n": 3}}],
        "ratio": 0.5,
    }
    told = settings_without_passwords(settings)
    assert "secret" not in str(told)
    assert told["source"]["files"] == ["s3://***@store/a", "plain@file"]
    assert told["stages"] == [{"options": {"at": "http://***@y/", "n": 3}}] and told["ratio"] == 0.5
