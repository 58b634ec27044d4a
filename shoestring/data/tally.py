"""What the manifest says of a file's rows: how many, which errors, which values are NaN (source: ours)."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from shoestring.data.output_state import ERROR, IDENTITY, add_counts

KIND_CHARS = 60
KIND_PARTS = 2
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+")
MAX_KINDS = 50
OTHER = "other"
SHOWN_CHARS = 200


class Tally:
    """Counts over tables of one file.

    Attributes:
        rows, failed: in all, and those with an error.
        errors: kind -> rows. See `kind_of_error`.
        not_numbers: column -> values that are NaN, also within lists and records.
        first_error: with its row's identity; empty: there is none.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.failed = 0
        self.errors: dict[str, int] = {}
        self.not_numbers: dict[str, int] = {}
        self.first_error = ""

    def add(self, table: pa.Table) -> None:
        """More rows."""
        self.rows += table.num_rows
        if ERROR in table.schema.names:
            self._add_errors(table)
        for name, column in zip(table.schema.names, table.columns, strict=True):
            count = sum(not_numbers(chunk) for chunk in column.chunks)
            if count:
                add_counts(self.not_numbers, {name: count})

    def _add_errors(self, table: pa.Table) -> None:
        texts = table.column(ERROR)
        failed = len(texts) - texts.null_count
        if not failed:
            return
        self.failed += failed
        if not self.first_error:
            bad = table.filter(pc.is_valid(texts)).slice(0, 1)
            who = bad.column(IDENTITY)[0].as_py() if IDENTITY in table.schema.names else ""
            self.first_error = f"{who}: {bad.column(ERROR)[0].as_py()}"[:SHOWN_CHARS]
        for one in texts.drop_null().value_counts().to_pylist():
            kind = kind_of_error(one["values"])
            if kind not in self.errors and len(self.errors) >= MAX_KINDS - 1:
                kind = OTHER
            add_counts(self.errors, {kind: one["counts"]})


def kind_of_error(text: str) -> str:
    """An error's kind: the begin of its text up to the second colon, whatever numbers are in it.

    Example: `embed: ValueError: row 17 is empty` is `embed: ValueError`.
    """
    parts = (text.splitlines() or [""])[0].split(": ")[:KIND_PARTS]
    return _NUMBER.sub("N", ": ".join(parts))[:KIND_CHARS].strip() or OTHER


def not_numbers(array: pa.Array) -> int:
    """Values of an array that are NaN, at any depth."""
    kind = array.type
    if pa.types.is_floating(kind):
        return int(pc.sum(pc.is_nan(array)).as_py() or 0)
    if isinstance(kind, pa.BaseExtensionType):
        return not_numbers(array.storage)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return not_numbers(array.flatten()) if _has_floats(kind) else 0
    if pa.types.is_struct(kind):
        return sum(not_numbers(part) for part in array.flatten()) if _has_floats(kind) else 0
    return 0


def _has_floats(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_floats(kind.storage_type)
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    return bool(pa.types.is_floating(kind)) or any(_has_floats(one) for one in inner)
