"""Folders whose names are durable."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shoestring.base.files import sync_folder


@pytest.mark.parametrize(("number", "borne"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_only_a_file_system_that_cannot_sync_folders_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, borne: bool
) -> None:
    asked: list[str] = []

    def sync(descriptor: int) -> None:
        asked.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    if borne:
        sync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    assert asked == [str(tmp_path)]
