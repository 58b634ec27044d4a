"""Groups of real processes: equal sums, no trace of a failed formation, a lost peer is named."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shoestring.parallel.group import PeerLostError, form


class FolderTable:
    """A rendezvous of files; `get` gives up after `patience_s`, as a round that is over does."""

    def __init__(self, root: Path, patience_s: float = 20.0) -> None:
        self._root = root
        self._patience_s = patience_s
        root.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self._root / key.replace("/", "|")

    def set(self, key: str, value: bytes) -> None:
        aside = self._root / f"aside-{os.getpid()}"
        aside.write_bytes(value)
        os.replace(aside, self._path(key))

    def get(self, key: str) -> bytes:
        until = time.monotonic() + self._patience_s
        while not self._path(key).exists():
            if time.monotonic() > until:
                raise RuntimeError(f"nobody has set {key}")
            time.sleep(0.002)
        return self._path(key).read_bytes()

    def add(self, key: str, amount: int) -> int:
        raise NotImplementedError(key)


def in_processes(size: int, body: Callable[[int], None]) -> list[int]:
    """Run body(rank) in `size` forked processes; their exit codes."""
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                body(rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


CPU = torch.device("cpu")


def test_sums_and_copies(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        with form(FolderTable(tmp_path), rank, 3, CPU, 20.0, loopback=True) as group:
            total = group.sum_(torch.arange(5.0) + rank)
            assert torch.equal(total, 3 * torch.arange(5.0) + 3)
            mixed = [
                torch.full((4,), float(rank)),
                torch.tensor(rank),
                torch.full((2, 2), rank, dtype=torch.bfloat16),
            ]
            group.copy_from_(2, mixed)
            assert all(bool((tensor == 2).all()) for tensor in mixed)

    assert in_processes(3, body) == [0, 0, 0]


def test_who_failed_to_form_a_group_can_form_the_next(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        if rank == 0:
            with (
                pytest.raises(PeerLostError),
                form(FolderTable(tmp_path / "first", 0.2), 0, 2, CPU, 5.0, loopback=True),
            ):
                pass
        with form(FolderTable(tmp_path / "second"), rank, 2, CPU, 20.0, loopback=True) as group:
            assert float(group.sum_(torch.ones(1))) == 2.0

    assert in_processes(2, body) == [0, 0]


def test_a_peer_that_died_is_a_lost_peer(tmp_path: Path) -> None:
    def body(rank: int) -> None:
        with form(FolderTable(tmp_path), rank, 2, CPU, 30.0, loopback=True) as group:
            group.sum_(torch.ones(1))
            if rank == 1:
                os._exit(0)
            with pytest.raises(PeerLostError):
                group.sum_(torch.ones(1000))

    began = time.monotonic()
    assert in_processes(2, body) == [0, 0]
    assert time.monotonic() - began < 20


def test_one_member_needs_no_network() -> None:
    with form(None, 0, 1, CPU, 1.0, loopback=True) as group:  # type: ignore[arg-type]
        assert torch.equal(group.sum_(torch.ones(2)), torch.ones(2))
