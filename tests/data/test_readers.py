"""Every kind of file, plain and packed, and every way in which one can be bad."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import zstandard

from shoestring.data import readers
from shoestring.data.sources import split_files
from tests.data.files import TEXT, json_lines, parquet, read, write

PACKED = ("", ".gz", ".zst")
TEXTS = [TEXT, "", "zwei\n\n", "\N{SNOWMAN}"]


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", [".txt", ".md", ".py", ".PY", ".rst"])
def test_a_text_is_one_document_byte_for_byte(tmp_path: Path, kind: str, packed: str) -> None:
    data = "\ufeff".encode() + (TEXT + "\r\nno end of line").encode()
    documents, skipped = read(write(tmp_path / f"a{kind}{packed}", data))
    assert [(d.name, d.data) for d in documents] == [(f"a{kind}{packed}", data)] and not skipped


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("field", ["text", "body"])
def test_json_lines(tmp_path: Path, packed: str, field: str) -> None:
    data = json_lines(TEXTS, field).replace(b"\n", b"\n\n", 1)
    documents, skipped = read(write(tmp_path / f"a.jsonl{packed}", data), field)
    assert [d.data.decode() for d in documents] == TEXTS and not skipped
    assert [d.name for d in documents] == [f"a.jsonl{packed}#{line}" for line in (1, 3, 4, 5)]


@pytest.mark.parametrize("packed", PACKED)
def test_parquet(tmp_path: Path, packed: str) -> None:
    documents, skipped = read(write(tmp_path / f"a.parquet{packed}", parquet(list(TEXTS), "body")), "body")
    assert [d.data.decode() for d in documents] == TEXTS and not skipped


def test_broken_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}', b'{"text": "tw', b'{"text": 3}', b'{"other": "x"}', b'["text"]',
             b'{"text": "\\ud800"}', b'{"text": "\xff"}', b'{"text": "last"}']  # fmt: skip
    documents, skipped = read(write(tmp_path / "a.jsonl", b"\n".join(lines)))
    assert [d.data for d in documents] == [b"one", b"last"]
    assert len(skipped) == 1 and skipped[0].documents == 2
    assert "6 of 8 rows" in skipped[0].reason and "line 2" in skipped[0].reason


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    documents, skipped = read(write(tmp_path / "a.parquet", parquet(["a", None, "b"])))
    assert [d.data for d in documents] == [b"a", b"b"]
    assert "1 of 3 rows" in skipped[0].reason and "row 2" in skipped[0].reason


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", b"ab\0cd", "zero byte at 2"),
        ("a.py", b"ab\xe9cd", "not UTF-8: byte 2"),
        ("a.parquet", b"PAR1 no table", "cannot be read"),
        ("a.parquet", parquet(["x"], "body"), "no column 'text'; its columns: body, id"),
        ("a.jsonl", json_lines(["x"], "body"), "no text in the field 'text'"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    documents, skipped = read(write(tmp_path / name, data))
    assert not documents and len(skipped) == 1
    assert said in skipped[0].reason and skipped[0].path == str(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.txt.zst", "a.jsonl.zst", "a.parquet.zst"])
def test_a_cut_off_archive_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, parquet(["x"]) if "parquet" in name else json_lines([TEXT] * 50))
    whole = (tmp_path / name).read_bytes()
    assert not read(file)[1]
    for end in (len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:end])
        _, skipped = read(file)
        assert len(skipped) == 1 and "cannot be read" in skipped[0].reason, end


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_what_is_no_archive_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, b"x")
    (tmp_path / name).write_bytes(b"plain text")
    documents, skipped = read(file)
    assert not documents and len(skipped) == 1


def test_frames_of_zstandard_follow_one_another(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt.zst", b"")
    (tmp_path / "a.txt.zst").write_bytes(
        b"".join(zstandard.compress(part) for part in (b"one ", b"", b"two"))
    )
    assert [d.data for d in read(file)[0]] == [b"one two"]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", b"x")
    (tmp_path / "a.txt").unlink()
    documents, skipped = read(file)
    assert not documents and "cannot be read" in skipped[0].reason


def test_a_long_text_comes_in_pieces_that_end_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 1000)
    data = (TEXT * 40).encode()
    documents, _ = read(write(tmp_path / "a.py", data))
    assert b"".join(d.data for d in documents) == data and len(documents) > 3
    assert all(d.data.endswith(b"\n") and len(d.data) < 2000 for d in documents)
    assert len({d.name for d in documents}) == len(documents)
    assert documents[-1].consumed_bytes == len(data)


def test_a_line_without_end_is_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "TEXT_PIECE_BYTES", 101)
    data = ("世界🙂" * 500).encode()
    documents, skipped = read(write(tmp_path / "a.txt", data))
    assert b"".join(d.data for d in documents) == data and len(documents) > 5 and not skipped


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_a_single_file_is_split_into_two_sides_that_make_the_whole(tmp_path: Path, name: str) -> None:
    lines = [f"line {n} " + "x" * 200 for n in range(1000)]
    data = json_lines(lines) if "jsonl" in name else "\n".join(lines).encode()
    file = write(tmp_path / name, data)
    split = split_files([dataclasses.replace(file, size_bytes=len(data))], 0.04)
    (train, _), (heldout, _) = read(split.train[0]), read(split.heldout[0])
    assert 0.02 < sum(len(d.data) for d in heldout) / len(data) < 0.06
    both = sorted([*train, *heldout], key=lambda d: int(d.name.split("#")[1]))
    whole = read(dataclasses.replace(file))[0]
    assert b"".join(d.data for d in both) == b"".join(d.data for d in whole)
