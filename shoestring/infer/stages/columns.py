"""What kinds of stages share: options, the columns they read, rows that they cannot take, the way of a batch
through a model that is a file (source: ours)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from shoestring.base.config import Config, parse_config
from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.batch import Answer, Batch
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


class Feed:
    """The way of a batch through a model that is a file: columns become arrays, those go in by as many rows
    as the model takes, and what comes out is joined.

    Args:
        path: of the model, for words.
        given: options.inputs: the model's input -> the column that goes there.
        rows: of each of the model's inputs, its first dimension; None: any.
        least, most: rows that a call takes, where that is not fixed; None: no bound.

    Raises:
        ConfigError: `given` names what the model has not, or its inputs disagree about the batch.
    """

    def __init__(
        self,
        path: Path,
        given: Mapping[str, str],
        rows: Mapping[str, int | None],
        least: int = 1,
        most: int | None = None,
    ) -> None:
        check_known("inputs", given, rows, path)
        self._columns = {name: given[name] if name in given else name for name in rows}
        fixed = {size for size in rows.values() if size is not None}
        if len(fixed) > 1:
            raise ConfigError(
                f"the model's inputs have different first dimensions: {dict(rows)}",
                "export it with the batch as first dimension of every input",
            )
        self._least, self._most = (max(fixed), max(fixed)) if fixed else (least, most)

    def answer(
        self,
        batch: Batch,
        array_of: Callable[[str, Any], tuple[Array, dict[int, str]]],
        call: Callable[[dict[str, Array]], Mapping[str, Array]],
    ) -> Answer:
        """Outputs of all rows; those that do not fit get an error.

        Args:
            array_of: (an input, its column) -> the array that goes in, and what is wrong with rows.
            call: the model: inputs by name -> outputs by name.

        Raises:
            InferError: there is no such column, or an output has another number of rows.
        """
        arrays: dict[str, Array] = {}
        errors: dict[int, str] = {}
        for name, column in self._columns.items():
            arrays[name], wrong = array_of(name, column_of(batch, column, f"options.inputs.{name}"))
            errors |= wrong
        if len(errors) == len(batch):  # what stands in for these rows has no shape that is known to fit
            return Answer({}, errors=errors)
        parts = []
        size = self._most or len(batch)
        for start in range(0, len(batch), size):
            end = min(start + size, len(batch))
            feed = {name: _filled(array[start:end], self._least) for name, array in arrays.items()}
            parts.append(_cut(call(feed), max(end - start, self._least), end - start))
        return Answer(
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, errors=errors
        )


def check_known(option: str, given: Iterable[str], there: Collection[str], path: Path) -> None:
    """Refuse names in an option that a model has not.

    Raises:
        ConfigError: there is one.
    """
    for name in given:
        if name not in there:
            raise ConfigError(
                f"options.{option} names {name!r}, which {path} has not", f"it has: {', '.join(there)}"
            )


def normal_pixels(pixels: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """Pixels [..., 3] of 0 to 255 as 0 to 1, less `mean`, by `std`; float32."""
    scaled: Array = pixels.astype(np.float32) / np.float32(255)
    return (scaled - np.array(mean, np.float32)) / np.array(std, np.float32)


def _filled(array: Array, least: int) -> Array:
    """Filled up to the rows that a model insists on, with its last row."""
    missing = least - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing > 0 else array


def _cut(outputs: Mapping[str, Array], given: int, rows: int) -> dict[str, Array]:
    """Outputs of a call with `given` rows, of which `rows` are wanted.

    Raises:
        InferError: an output has another number of rows.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != given:
            raise InferError(
                f"the output {name!r} has the shape {tuple(array.shape)} for {given} rows",
                "the model's first dimension has to be the batch, in what goes in and in what comes out",
            )
    return {name: array[:rows] for name, array in outputs.items()}


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
