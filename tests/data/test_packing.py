"""Packing: once, resumable, mended where it is damaged, and nothing lost or doubled on the way."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shoestring.base.errors import DataError
from shoestring.data import packing
from shoestring.data.packing import PackedIndex, digest, pack, shard_path
from shoestring.data.sources import SourceFile, split_files
from shoestring.data.tokens import PackedTokens, TokenDataset
from tests.data.files import TEXT, json_lines, small_tokenizer, write, write_texts

TOKENIZER = small_tokenizer()
SHARD_BYTES = 700


class Killed(BaseException):
    """Stands for the end of the process at that moment."""


def small_shards(
    files: list[SourceFile], folder: Path, on_progress: Callable[[int, int], None] | None = None
) -> PackedIndex:
    return pack(files, "text", TOKENIZER, folder, on_progress=on_progress, shard_bytes=SHARD_BYTES)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("shard-*")}


def mixed_files(folder: Path) -> list[SourceFile]:
    """Texts, several documents in one file, a bad file, an empty one and a broken line."""
    files = write_texts(folder, 12)
    files.append(
        write(folder / "lines.jsonl.gz", json_lines([f"{n} " + TEXT for n in range(30)]) + b"{broken\n")
    )
    files.append(write(folder / "binary.txt", b"\0\1\2"))
    files.append(write(folder / "empty.txt", b""))
    files.append(write(folder / "zz.md", b"the last one\n"))
    return files


def test_every_byte_comes_back_in_order(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 20)
    index = small_shards(files, tmp_path / "out")
    packed = PackedTokens(tmp_path / "out")
    texts = list(packed.texts(TOKENIZER))
    assert texts == [(file.name, Path(file.url).read_bytes()) for file in files]
    assert index.n_bytes == sum(file.size_bytes for file in files) and index.documents == 20
    assert len(index.shard_tokens) > 3
    for ids, _ in packed.documents():
        assert (ids[0], ids[-1]) == (TOKENIZER.start_id, TOKENIZER.end_id)
        assert not {TOKENIZER.start_id, TOKENIZER.end_id} & set(ids[1:-1])


def test_the_bad_is_named_the_empty_counted_and_the_rest_packed(tmp_path: Path) -> None:
    index = small_shards(mixed_files(tmp_path / "in"), tmp_path / "out")
    assert index.documents == 12 + 30 + 1 and index.empty == 1
    assert [(Path(s.path).name, s.documents) for s in index.skipped] == [
        ("lines.jsonl.gz", 30),
        ("binary.txt", 0),
    ]


def test_only_bad_files_are_fatal_and_named(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{n}.txt", b"\0") for n in range(3)]
    with pytest.raises(DataError) as error:
        small_shards(files, tmp_path / "out")
    assert "0.txt" in error.value.what and "zero byte" in error.value.what


def test_a_second_packing_writes_nothing(tmp_path: Path) -> None:
    files = mixed_files(tmp_path / "in")
    first = small_shards(files, tmp_path / "out")
    before = stamps(tmp_path / "out")
    assert small_shards(files, tmp_path / "out") == first
    assert stamps(tmp_path / "out") == before


@pytest.mark.parametrize("when", range(0, 45, 4))
def test_a_killed_packing_goes_on_and_ends_the_same(tmp_path: Path, when: int) -> None:
    files = mixed_files(tmp_path / "in")
    small_shards(files, tmp_path / "whole")
    calls = 0

    def kill(done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == when + 1:
            raise Killed

    with pytest.raises(Killed):
        small_shards(files, tmp_path / "out", kill)
    committed = {path.with_suffix(".bin").name for path in (tmp_path / "out").glob("shard-*.json")}
    before = stamps(tmp_path / "out")
    small_shards(files, tmp_path / "out")
    after = stamps(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert all(before[name] == after[name] for name in committed)


@pytest.mark.parametrize("ending", [".bin", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_made_anew_alone(tmp_path: Path, ending: str, damage: str) -> None:
    files = mixed_files(tmp_path / "in")
    small_shards(files, tmp_path / "out")
    right, before = contents(tmp_path / "out"), stamps(tmp_path / "out")
    path = shard_path(tmp_path / "out", 3).with_suffix(ending)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if damage == "gone" else path.write_bytes(data if damage == "flip" else data[:-3])
    small_shards(files, tmp_path / "out")
    assert contents(tmp_path / "out") == right
    others = [name for name in before if not name.startswith("shard-00003")]
    assert len(others) > 6 and all(stamps(tmp_path / "out")[name] == before[name] for name in others)


def test_shards_of_another_size_never_mix(tmp_path: Path) -> None:
    files = mixed_files(tmp_path / "in")
    small_shards(files, tmp_path / "out")
    # Made anew at another size, the first shard ends where the second does not begin.
    shard_path(tmp_path / "out", 0).unlink()
    pack(files, "text", TOKENIZER, tmp_path / "out", shard_bytes=2 * SHARD_BYTES)
    assert [data for _, data in PackedTokens(tmp_path / "out").texts(TOKENIZER)] == [
        data for _, data in _packed_alone(files, tmp_path / "other")
    ]


def _packed_alone(files: list[SourceFile], folder: Path) -> list[tuple[str, bytes]]:
    pack(files, "text", TOKENIZER, folder)
    return list(PackedTokens(folder).texts(TOKENIZER))


def test_progress_grows_to_the_whole(tmp_path: Path) -> None:
    files = mixed_files(tmp_path / "in")
    seen: list[tuple[int, int]] = []
    small_shards(files, tmp_path / "out", lambda done, total: seen.append((done, total)))
    total = sum(file.size_bytes for file in files)
    assert seen == sorted(seen) and {t for _, t in seen} == {total} and seen[-1] == (total, total)
    assert len({done for done, _ in seen}) > 12


def test_excluded_texts_are_left_out_and_named(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 5)
    twin = Path(files[2].url).read_bytes()
    index = pack(files, "text", TOKENIZER, tmp_path / "out", frozenset({digest(twin)}))
    assert index.duplicates == [files[2].name] and index.documents == 4
    assert twin not in [data for _, data in PackedTokens(tmp_path / "out").texts(TOKENIZER)]


def test_two_packings_at_once_wait_for_one_another(tmp_path: Path) -> None:
    files = write_texts(tmp_path / "in", 5)
    (tmp_path / "out").mkdir()
    holder = os.open(tmp_path / "out/.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    done: list[PackedIndex] = []
    thread = threading.Thread(target=lambda: done.append(small_shards(files, tmp_path / "out")))
    thread.start()
    thread.join(timeout=0.1)
    assert not done and not list((tmp_path / "out").glob("shard-*"))
    os.close(holder)
    thread.join(timeout=20)
    assert done[0].documents == 5


def test_a_full_disk_says_so_and_packing_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mixed_files(tmp_path / "in")

    def full(path: Path, value: object) -> None:
        if path.name == "shard-00004.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        right(path, value)  # type: ignore[arg-type]

    right = packing.write_checked
    with monkeypatch.context() as patch:
        patch.setattr(packing, "write_checked", full)
        with pytest.raises(DataError, match="free some space"):
            small_shards(files, tmp_path / "out")
    small_shards(files, tmp_path / "out")
    small_shards(files, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_sides_of_a_single_file_hold_all_of_it(tmp_path: Path) -> None:
    file = write(tmp_path / "one.txt", "".join(f"{n} {TEXT}" for n in range(500)).encode())
    split = split_files([file], 0.1)
    for name, side in (("train", split.train), ("heldout", split.heldout)):
        pack(side, "text", TOKENIZER, tmp_path / name, shard_bytes=5000)
    train, heldout = (dict(PackedTokens(tmp_path / name).texts(TOKENIZER)) for name in ("train", "heldout"))
    assert not train.keys() & heldout.keys()
    both = sorted((train | heldout).items(), key=lambda item: int(item[0].split("#")[1]))
    assert b"".join(data for _, data in both) == (tmp_path / "one.txt").read_bytes()


@pytest.mark.parametrize("seq_len", [1, 7, 64, 900])
def test_samples_are_windows_over_the_whole_stream(tmp_path: Path, seq_len: int) -> None:
    small_shards(write_texts(tmp_path / "in", 20), tmp_path / "out")
    dataset = TokenDataset(tmp_path / "out", seq_len)
    stream = np.concatenate([ids for ids, _ in dataset.documents()])
    assert len(dataset) == (len(stream) - 1) // seq_len
    windows = dataset.batch(np.arange(len(dataset)))
    assert windows.dtype == np.int64 and windows.shape == (len(dataset), seq_len + 1)
    assert (windows[:, :-1].ravel() == stream[: len(dataset) * seq_len]).all()
    assert (windows[:, 1:].ravel() == stream[1 : len(dataset) * seq_len + 1]).all()
    some = np.array([len(dataset) - 1, 0, len(dataset) // 2])
    assert (dataset.batch(some) == windows[some]).all()
    assert dataset.batch(np.zeros(0, np.int64)).shape == (0, seq_len + 1)


def test_an_id_outside_is_an_error_not_another_sample(tmp_path: Path) -> None:
    small_shards(write_texts(tmp_path / "in", 5), tmp_path / "out")
    dataset = TokenDataset(tmp_path / "out", 16)
    for bad in (-1, len(dataset) + 1):
        with pytest.raises(DataError, match="stream"):
            dataset.batch(np.array([0, bad]))


def test_too_little_text_for_one_sample_is_a_clear_error(tmp_path: Path) -> None:
    small_shards(write_texts(tmp_path / "in", 2), tmp_path / "out")
    with pytest.raises(DataError, match="seq_len"):
        TokenDataset(tmp_path / "out", 100_000)


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    large = small_tokenizer()
    large.vocab_size = 1 << 17
    files = write_texts(tmp_path / "in", 3)
    assert pack(files, "text", large, tmp_path / "large").dtype == "uint32"
    assert small_shards(files, tmp_path / "small").dtype == "uint16"
    texts = [list(PackedTokens(tmp_path / name).texts(TOKENIZER)) for name in ("large", "small")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("what", ["no index", "damaged index", "cut shard", "no shard"])
def test_damage_is_found_when_tokens_are_opened(tmp_path: Path, what: str) -> None:
    small_shards(write_texts(tmp_path / "in", 9), tmp_path / "out")
    index, shard = tmp_path / "out" / packing.INDEX, shard_path(tmp_path / "out", 1)
    if what == "damaged index":
        index.write_bytes(index.read_bytes().replace(b"documents", b"documentz"))
    elif what == "cut shard":
        shard.write_bytes(shard.read_bytes()[:-2])
    else:
        (index if what == "no index" else shard).unlink()
    with pytest.raises(DataError, match="damaged"):
        PackedTokens(tmp_path / "out")


def test_a_changed_tokenizer_is_noticed(tmp_path: Path) -> None:
    files = [dataclasses.replace(file) for file in write_texts(tmp_path / "in", 3)]
    small_shards(files, tmp_path / "out")

    class Other:
        def decode(self, ids: list[int]) -> bytes:
            return TOKENIZER.decode(ids) + b"!"

    with pytest.raises(DataError, match="decodes to"):
        list(PackedTokens(tmp_path / "out").texts(Other()))  # type: ignore[arg-type]
