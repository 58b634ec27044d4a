"""Tables in shared memory: whole, private, without copies, and gone with their process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest

from shoestring.infer import shared
from shoestring.infer.shared import Segments


def held_bytes(segments: Segments) -> int:
    return sum(one.stat().st_size for one in segments.folder.iterdir())


def test_a_table_comes_back_as_a_view_and_outlives_its_name(tmp_path: Path) -> None:
    segments = Segments.make(least_bytes=0, shared=tmp_path)
    rows = shared.SMALL_BYTES // 8
    try:
        assert segments.folder.parent == tmp_path and segments.folder.stat().st_mode & 0o777 == 0o700
        table = pa.table({"a": list(range(rows)), "b": [str(one) for one in range(rows)]})
        before = pa.total_allocated_bytes()
        size_bytes = segments.write("one", table)
        read = Segments(segments.folder).read("one")
        assert pa.total_allocated_bytes() - before < 1000, "values were copied"
        assert read.equals(table) and held_bytes(segments) == size_bytes > table.nbytes // 2
        segments.remove("one")
        segments.remove("one")
        assert held_bytes(segments) == 0 and read.slice(10, 3).column("b").to_pylist() == ["10", "11", "12"]
        with pytest.raises(FileNotFoundError):
            segments.read("one")
    finally:
        segments.close()
    assert not segments.folder.exists()


def test_dictionaries_that_differ_by_chunk_can_be_kept(tmp_path: Path) -> None:
    segments = Segments.make(least_bytes=0, shared=tmp_path)
    parts = [pa.table({"a": pa.array(one).dictionary_encode()}) for one in (["x", "y"], ["z", "x"])]
    segments.write("one", pa.concat_tables(parts))
    assert segments.read("one").column("a").to_pylist() == ["x", "y", "z", "x"]
    segments.close()


def test_too_little_shared_memory_is_left_alone(tmp_path: Path) -> None:
    segments = Segments.make(least_bytes=1 << 60, shared=tmp_path)
    assert segments.folder.parent != tmp_path
    segments.close()
    assert shared.free_bytes(tmp_path / "nowhere") == 0


def test_no_room_is_a_lack_of_memory(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("/dev/full")
    with pytest.raises(MemoryError, match="no room"):
        Segments(tmp_path).write("one", pa.table({"a": list(range(100_000))}))
    assert not (tmp_path / "one").is_symlink(), "half a table is not kept"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    alive = Segments.make(least_bytes=0, shared=tmp_path)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        left = Segments.make(least_bytes=0, shared=tmp_path)
        left.write("one", pa.table({"a": [1]}))
        os.write(write_fd, str(left.folder).encode())
        signal.pause()
    left = Path(os.read(read_fd, 4096).decode())
    other = tmp_path / "shoestring-rows-something-else"
    other.mkdir()
    Segments.make(least_bytes=0, shared=tmp_path).close()
    assert left.exists(), "its process lives"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    Segments.make(least_bytes=0, shared=tmp_path).close()
    assert not left.exists() and alive.folder.exists() and other.exists()
    alive.close()
    for fd in (read_fd, write_fd):
        os.close(fd)
