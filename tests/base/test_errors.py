"""What errors say in one line."""

from __future__ import annotations

import pytest

from shoestring.base.errors import DataError, first_line


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
