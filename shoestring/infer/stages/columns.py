"""What kinds of stages share: options, the columns they read, rows that they cannot take (source: ours)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from shoestring.base.config import Config, parse_config
from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.batch import Batch
from shoestring.infer.config import StageConfig

C = TypeVar("C", bound=Config)
Array = np.ndarray[Any, np.dtype[Any]]


def options_of(cls: type[C], config: StageConfig) -> C:
    """A stage's options, checked.

    Raises:
        ConfigError: one is unknown or of the wrong type.
    """
    return parse_config(cls, dict(config.options), f"options of stage {config.name or config.uses}")


def column_of(batch: Batch, name: str, option: str) -> Any:
    """A column by name.

    Raises:
        InferError: there is none; `option` says how to name another.
    """
    if name not in batch:
        raise InferError(
            f"there is no column {name!r}", f"set the stage's {option} to one of: {', '.join(batch)}"
        )
    return batch[name]


def texts_of(batch: Batch, name: str, option: str) -> tuple[list[str], dict[int, str]]:
    """A column of texts, and what is wrong with those that are none (they are empty then)."""
    found: list[str] = []
    errors: dict[int, str] = {}
    for place, value in enumerate(column_of(batch, name, option)):
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(value, str):
            found.append(value)
        else:
            what = "missing" if value is None else f"a {type(value).__name__}, not a text"
            errors[place] = f"{name} is {what}"
            found.append("")
    return found, errors


def stacked(values: Any, shape: Sequence[int | None], name: str) -> tuple[Array, dict[int, str]]:
    """A column as one array [n, *shape], and what is wrong with rows that do not fit (they are zeros then).

    Args:
        values: a NumPy array, or objects: nested lists of numbers.
        shape: of a row; None: any size, the same for all rows.
        name: for words.
    """
    whole = _fitting(values, shape)
    if whole is not None:
        return whole, {}
    rows: list[Array | None] = []
    errors: dict[int, str] = {}
    for place, value in enumerate(values):
        row = _numbers(value)
        fits = row is not None and _reshaped(row, shape)
        if row is None or fits is None or fits is False:
            what = (
                "is missing"
                if value is None
                else f"has the shape {_shape(row)}"
                if row is not None
                else "is no array"
            )
            errors[place] = f"{name} {what}; the model takes {_words(shape)}"
            rows.append(None)
        else:
            rows.append(fits if isinstance(fits, np.ndarray) else None)
    first = next((row for row in rows if row is not None), None)
    if first is None:
        first = np.zeros([size or 0 for size in shape], np.float32)
    out = np.zeros((len(rows), *first.shape), first.dtype)
    for place, row in enumerate(rows):
        if row is not None and row.shape == first.shape:
            out[place] = row
        elif row is not None:
            errors[place] = f"{name} has the shape {_shape(row)}, the rows beside it {_shape(first)}"
    return out, errors


def as_columns(outputs: Mapping[str, Array], rows: int) -> dict[str, Any]:
    """A model's outputs, one entry a row.

    Raises:
        InferError: an output has another number of rows.
    """
    columns = {}
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise InferError(
                f"the output {name!r} has the shape {tuple(array.shape)} for {rows} rows",
                "the model's first dimension has to be the batch, in what goes in and in what comes out",
            )
        columns[name] = array
    return columns


def _fitting(values: Any, shape: Sequence[int | None]) -> Array | None:
    """The column as it is, where that will do."""
    if not isinstance(values, np.ndarray) or values.dtype == object:
        return None
    if not len(values):
        return values.reshape((0, *(size or 0 for size in shape)))
    return _reshaped(values, (len(values), *shape))


def _numbers(value: Any) -> Array | None:
    """A row as an array of numbers; None where it is none."""
    try:
        row = np.asarray(value)
    except ValueError:  # lists of uneven length
        return None
    return row if row.dtype.kind in "biuf" else None


def _reshaped(row: Array, shape: Sequence[int | None]) -> Array | None:
    """As the model wants it; a flat list of the right length will do, for file formats have no matrices."""
    if len(row.shape) == len(shape) and all(
        want in (None, has) for has, want in zip(row.shape, shape, strict=True)
    ):
        return row
    if None in shape or row.size != int(np.prod([size for size in shape if size is not None])):
        return None
    return row.reshape([size for size in shape if size is not None])


def _shape(row: Array | None) -> str:
    return "x".join(map(str, row.shape)) or "of one number" if row is not None else "none"


def _words(shape: Sequence[int | None]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape) or "one number"


def batch_sizes_agree(sizes: Mapping[str, int | None]) -> int | None:
    """The batch size that a model insists on; None: any.

    Raises:
        ConfigError: its inputs disagree.
    """
    fixed = {size for size in sizes.values() if size is not None}
    if len(fixed) > 1:
        raise ConfigError(
            f"the model's inputs have different first dimensions: {dict(sizes)}",
            "export it with the batch as first dimension of every input",
        )
    return fixed.pop() if fixed else None


def pieces_of(rows: int, batch: int | None) -> list[tuple[int, int]]:
    """(start, end) of the calls that it takes; one, where any batch size will do."""
    if batch is None:
        return [(0, rows)]
    return [(start, min(start + batch, rows)) for start in range(0, rows, batch)]


def filled(array: Array, batch: int | None) -> Array:
    """Filled up to the batch size that a model insists on, with its last row."""
    if batch is None or len(array) == batch:
        return array
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
