"""Where the rows of a job go (source: ours)."""

from __future__ import annotations

from typing import Literal

from shoestring.base.config import Config


class SinkConfig(Config):
    """Where output goes.

    Attributes:
        path: a folder, local or any fsspec URL; made when missing.
        format: of the files in it. `images` writes the bytes in column `image` of each row as a file of its
            own, beside a parquet file of the other columns.
        columns: of the output to keep, beside `row` and `error`; empty: all.
        image: see `format`.
        image_suffix: of files that `images` writes.
    """

    path: str = ""
    format: Literal["parquet", "jsonl", "csv", "text", "images"] = "parquet"
    columns: tuple[str, ...] = ()
    image: str = "image"
    image_suffix: str = ".png"
