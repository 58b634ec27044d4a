"""The xz yardstick is what the command gives, and depends on the texts alone."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from shoestring.base.errors import DataError
from shoestring.evaluate.compress import tar, xz, xz_sizes

TEXTS = [(f"folder/{n}.py", (f"def f{n}(x):\n    return x + {n}\n" * (20 + n)).encode()) for n in range(6)]


@pytest.mark.skipif(shutil.which("xz") is None, reason="the command xz is not installed")
def test_the_size_is_that_of_the_command() -> None:
    for data in (*(data for _, data in TEXTS), Path(__file__).read_bytes(), tar(TEXTS)):
        done = subprocess.run(
            ["xz", "-9e", "--threads=1", "--stdout"], input=data, capture_output=True, check=True
        )
        # Several threads write sizes into the block's header, one thread does not: 8 bytes at most.
        assert abs(len(done.stdout) - len(xz(data))) <= 8


def test_sizes_are_sums_and_the_archive_profits_from_what_files_share() -> None:
    found = xz_sizes(TEXTS)
    assert found.n_bytes == sum(len(data) for _, data in TEXTS)
    assert found.per_file_bytes == sum(len(xz(data)) for _, data in TEXTS)
    assert found.per_file_bits_per_byte == 8 * found.per_file_bytes / found.n_bytes
    assert found.archive_bits_per_byte < found.per_file_bits_per_byte


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert xz_sizes(TEXTS) == xz_sizes(reversed(TEXTS))


def test_the_archive_holds_the_texts_and_nothing_of_this_machine() -> None:
    long_name = "x/" * 80 + "long.py"
    with tarfile.open(fileobj=BytesIO(tar([*TEXTS, (long_name, b"data")]))) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [*(name for name, _ in TEXTS), long_name]
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}
        file = archive.extractfile(members[-1])
        assert file is not None and file.read() == b"data"


def test_progress_counts_the_texts() -> None:
    seen: list[int] = []
    xz_sizes(TEXTS, seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_no_text_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="no text"):
        xz_sizes([("empty.py", b"")])
