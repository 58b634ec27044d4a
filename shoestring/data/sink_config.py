"""Where the rows of a job go (source: ours)."""

from __future__ import annotations

from typing import Literal

from shoestring.base.config import Config


class SinkConfig(Config):
    """Where output goes.

    Attributes:
        path: a folder, local or any fsspec URL; made when missing.
        format: of the files in it. `images` writes the bytes in column `image` of each row as a file of its
            own (below `_images/`), beside a parquet file of the other columns and the files' names. `text`
            writes one column as lines, without errors: line N is row N of the file, a failed row's is empty.
            `jsonl` has null for NaN, which JSON does not know (the manifest counts them); in `csv` a nested
            value is JSON text; bytes are base64 in both.
        columns: of the output to keep, beside `row` and `error`; empty: all.
        image: see `format`.
        image_suffix: of files that `images` writes.
        text: the column that `text` writes; empty: the only one beside `row` and `error`.
        compression: within parquet files.
    """

    path: str = ""
    format: Literal["parquet", "jsonl", "csv", "text", "images"] = "parquet"
    columns: tuple[str, ...] = ()
    image: str = "image"
    image_suffix: str = ".png"
    text: str = ""
    compression: Literal["zstd", "snappy", "none"] = "zstd"
