"""Small files of every kind for the tests of data, and the packing of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from shoestring.data.readers import Document, SkippedFile, read_file
from shoestring.data.sources import SourceFile
from shoestring.data.tokenizer import TextTokenizer, train_tokenizer

TEXT = "def greet(name):\n    # grüße, 世界 and 🙂\n    return f'hello {name}' * 12\n\n\n"


def source(path: Path, name: str = "") -> SourceFile:
    """A file as `find_files` would give it."""
    about = path.stat()
    return SourceFile(name or path.name, str(path), about.st_size, str(about.st_mtime_ns))


def write(path: Path, data: bytes) -> SourceFile:
    """Write bytes, packed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        data = zstandard.compress(data)
    path.write_bytes(data)
    return source(path)


def write_texts(folder: Path, count: int) -> list[SourceFile]:
    """Different texts of growing length."""
    return [
        write(folder / f"text{n:03}.py", (f"# number {n}\n" + TEXT * (1 + n % 5)).encode())
        for n in range(count)
    ]


def json_lines(texts: list[str], field: str = "text") -> bytes:
    """One object a line."""
    return "".join(json.dumps({field: text, "id": n}) + "\n" for n, text in enumerate(texts)).encode()


def parquet(texts: list[str | None], column: str = "text") -> bytes:
    """A table with a column of texts and one of numbers."""
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({column: pyarrow.array(texts, pyarrow.string()), "id": list(range(len(texts)))})
    pyarrow.parquet.write_table(table, sink, row_group_size=3)
    return bytes(sink.getvalue())


def read(file: SourceFile, field: str = "text") -> tuple[list[Document], list[SkippedFile]]:
    """All that a reader gives, apart."""
    items = list(read_file(file, field))
    return (
        [item for item in items if isinstance(item, Document)],
        [item for item in items if isinstance(item, SkippedFile)],
    )


def small_tokenizer() -> TextTokenizer:
    """Learned from a few lines."""
    return train_tokenizer([TEXT.encode()] * 3, 300)


def count_opens(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[SourceFile]:
    """Each time that a module opens a file, from now on."""
    seen: list[SourceFile] = []

    class Counted(module.opened):  # type: ignore[misc,name-defined]
        def __init__(self, file: SourceFile) -> None:
            seen.append(file)
            super().__init__(file)

    monkeypatch.setattr(module, "opened", Counted)
    return seen
