"""What a stage answers, as Arrow columns of agreed types (source: ours).

An item whose value does not fit its column fails by itself; an answer of the wrong shape is the stage's bug.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shoestring.base.errors import InferError, first_line
from shoestring.infer.batch import Answer
from shoestring.infer.schemas import emits_many, item_schema

CAST_ERRORS = (
    pa.ArrowInvalid,
    pa.ArrowTypeError,
    pa.ArrowNotImplementedError,
    OverflowError,
    TypeError,
    ValueError,
)
_LARGEST = np.iinfo(np.int32).max
_SHOWN = 120


@dataclass(frozen=True)
class Made:
    """An answer that makes sense.

    Attributes:
        table: the stage's own columns: one entry an item that came out; items with an error are null.
        counts: int64 [items], of items that came out of each that went in; None: one each.
        errors: place of an item that went in -> what is wrong.
        empty: nothing is known of its columns: all failed.
    """

    table: pa.Table
    counts: np.ndarray[Any, Any] | None
    errors: dict[int, str]
    empty: bool = False


def normalised(result: Any, items: int, agreed: pa.Schema | None, stage: str) -> Made:
    """An answer to `items` items.

    Args:
        result: what the stage returned: a mapping, a table or an `Answer`.
        agreed: names and types that it must have; None: as they come.
        stage: its name, for errors.

    Raises:
        InferError: it is none of these, has not one entry for each item or not the columns that were agreed
            upon, or its values are of no kind.
    """
    answer = _as_answer(result, stage)
    many = agreed is not None and emits_many(agreed)
    counts = _counts(answer, items, stage)
    if agreed is not None and counts is not None and not many:
        if (counts != 1).any():
            raise _wrong(
                stage, "answered with counts, in the trial it gave one item for each", "always give counts"
            )
        counts = None
    errors = _errors(answer, items, counts, stage)
    if counts is None and many:
        counts = np.ones(items, np.int64)
        counts[list(errors)] = 0
        answer = _without(answer, list(errors), items)
    out = items if counts is None else int(counts.sum())
    if not answer.columns and len(errors) == items and items:
        return _all_failed(items, counts, errors, agreed)
    own = None if agreed is None else item_schema(agreed)
    _check_columns(answer, own, counts, stage)
    names = list(answer.columns) if own is None else own.names
    arrays, bad = {}, dict[int, str]()
    for name in names:
        kind = None if own is None else own.field(name).type
        arrays[name], wrong = _column(name, answer.columns[name], out, kind, stage, errors, counts)
        for place, why in wrong.items():
            bad.setdefault(place, f"column {name!r}: {why}")
    return _settled(arrays, counts, errors, bad, items)


def _as_answer(result: Any, stage: str) -> Answer:
    if isinstance(result, Answer):
        return result
    if isinstance(result, pa.RecordBatch):
        result = pa.Table.from_batches([result])
    if isinstance(result, pa.Table):
        return Answer(dict(zip(result.column_names, result.columns, strict=True)))
    if isinstance(result, Mapping):
        return Answer(result)
    raise _wrong(
        stage, f"answered with {_kind(result)}", "return a mapping of columns, an Arrow table or an Answer"
    )


def _counts(answer: Answer, items: int, stage: str) -> np.ndarray[Any, Any] | None:
    if answer.counts is None:
        return None
    counts = np.asarray(_plain(answer.counts))
    if counts.size == 0:
        counts = counts.astype(np.int64)
    if counts.shape != (items,) or counts.dtype.kind not in "iu" or (counts < 0).any():
        raise _wrong(
            stage,
            f"gave counts of shape {list(counts.shape)} and type {counts.dtype} for {items} items",
            "give one whole number, 0 or more, for each item that went in",
        )
    return counts.astype(np.int64)


def _errors(answer: Answer, items: int, counts: np.ndarray[Any, Any] | None, stage: str) -> dict[int, str]:
    errors = {}
    for place, text in answer.errors.items():
        try:
            at = operator.index(place)
        except TypeError:
            at = -1
        if not 0 <= at < items:
            raise _wrong(stage, f"gave an error for item {place!r} of {items}", "count items from 0")
        if counts is not None and counts[at]:
            raise _wrong(
                stage,
                f"gave an error for item {at} and {counts[at]} items that came out of it",
                "give a failed item the count 0",
            )
        errors[at] = str(text) or "failed"
    return errors


def _check_columns(
    answer: Answer, own: pa.Schema | None, counts: np.ndarray[Any, Any] | None, stage: str
) -> None:
    for name in answer.columns:
        if not isinstance(name, str) or not name:
            raise _wrong(stage, f"calls a column {name!r}", "names of columns are texts")
    if not answer.columns and counts is None:
        raise _wrong(stage, "answered with no column", "return at least one")
    if own is None:
        return
    missing = [name for name in own.names if name not in answer.columns]
    if missing:
        raise _wrong(
            stage, f"answered without {missing[0]!r}, which it gave in the trial", "give it every time"
        )
    more = [name for name in answer.columns if name not in own.names]
    if more:
        raise _wrong(stage, f"answered with {more[0]!r}, which it did not in the trial", "give it every time")


def _all_failed(
    items: int, counts: np.ndarray[Any, Any] | None, errors: dict[int, str], agreed: pa.Schema | None
) -> Made:
    if agreed is None:
        return Made(pa.table({}), counts, errors, empty=True)
    own = item_schema(agreed)
    rows = items if counts is None else 0
    columns = [pa.nulls(rows, one.type) for one in own]
    return Made(pa.Table.from_arrays(columns, names=own.names), counts, errors)


def _without(answer: Answer, failed: list[int], items: int) -> Answer:
    """Where one each came out: columns without the entries of failed ones, which have no item then."""
    if not failed or not answer.columns:
        return answer
    good = np.delete(np.arange(items), failed)
    columns: dict[str, Any] = {}
    for name, values in answer.columns.items():
        plain = _plain(values)
        if _length(plain) != items:
            columns[name] = plain  # told as wrong by who looks at lengths
        elif isinstance(plain, pa.Array | pa.ChunkedArray):
            columns[name] = plain.take(pa.array(good))
        elif isinstance(plain, np.ndarray):
            columns[name] = plain[good]
        else:
            columns[name] = [plain[at] for at in good]
    return Answer(columns, None, answer.errors)


# --- columns -------------------------------------------------------------------------------------


def _column(
    name: str,
    values: Any,
    out: int,
    kind: pa.DataType | None,
    stage: str,
    errors: Mapping[int, str],
    counts: np.ndarray[Any, Any] | None,
) -> tuple[pa.Array, dict[int, str]]:
    """As an array of `out` entries, and what is wrong by place; failed items' values are passed over."""
    plain = _plain(values)
    length = _length(plain)
    if length != out:
        came = f"{_kind(values)}" if length is None else f"{length} values"
        wanted = f"{out} items that counts tell of" if counts is not None else f"{out} items"
        raise _wrong(stage, f"gave {came} in column {name!r} for {wanted}", "give one value for each item")
    if isinstance(plain, pa.Array | pa.ChunkedArray):
        return _from_arrow(plain, kind)
    if isinstance(plain, np.ndarray) and plain.dtype.kind not in "OUSV":
        if plain.dtype.kind == "c":
            raise _wrong(
                stage, f"gave complex numbers in column {name!r}", "give real and imaginary part apart"
            )
        return _from_arrow(_from_numpy(plain), kind)
    listed = plain.tolist() if isinstance(plain, np.ndarray) else list(plain)
    skipped = errors if counts is None else {}
    clean = [None if at in skipped else _value(one) for at, one in enumerate(listed)]
    return _from_list(name, clean, kind, stage)


def _from_arrow(found: Any, kind: pa.DataType | None) -> tuple[pa.Array, dict[int, str]]:
    array = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    array = _as_lists(array)
    if kind is None or array.type.equals(kind):
        return array, {}
    try:
        return array.cast(kind), {}
    except CAST_ERRORS:
        return _apart(len(array), kind, lambda at: array.slice(at, 1).cast(kind))


def _from_list(
    name: str, values: list[Any], kind: pa.DataType | None, stage: str
) -> tuple[pa.Array, dict[int, str]]:
    try:
        # Whole numbers and floats in one list make floats, in whichever order they come.
        array = pa.array(values, kind)
    except CAST_ERRORS as error:
        if kind is None:
            kinds = {type(one).__name__ for one in values if one is not None}
            raise _wrong(
                stage,
                f"gave values of {_listed(kinds)} in column {name!r}: {_line(error)}",
                "give texts, numbers, bytes, lists or mappings, all of one kind",
            ) from error
        return _apart(len(values), kind, lambda at: pa.array([values[at]], kind))
    return array, {}


def _apart(count: int, kind: pa.DataType, one: Callable[[int], pa.Array]) -> tuple[pa.Array, dict[int, str]]:
    """Item by item: those that do not fit are null."""
    parts, wrong = [], {}
    for at in range(count):
        try:
            parts.append(one(at))
        except CAST_ERRORS as error:
            wrong[at] = f"{_line(error)} (the column is {kind})"
            parts.append(pa.nulls(1, kind))
    return pa.concat_arrays(parts), wrong


def _from_numpy(values: np.ndarray[Any, Any]) -> pa.Array:
    """[n] as it is; [n, a, b] as lists of lists, a batch may have longer ones than the next."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return _nested(flat, values.shape)


def _nested(flat: pa.Array, shape: Sequence[int]) -> pa.Array:
    if len(flat) > _LARGEST:
        raise MemoryError(f"an answer of {len(flat):,} numbers: too many for one batch")
    array = flat
    for level in range(len(shape) - 1, 0, -1):
        count = int(np.prod(shape[:level]))
        offsets = np.arange(count + 1, dtype=np.int32) * np.int32(shape[level])
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def _as_lists(array: pa.Array) -> pa.Array:
    """Lists of a fixed size as plain lists, as all other lists are."""
    if not pa.types.is_fixed_size_list(array.type):
        return array
    return array.cast(_unfixed(array.type))


def _unfixed(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_unfixed(kind.value_type)) if pa.types.is_fixed_size_list(kind) else kind


def _settled(
    arrays: Mapping[str, pa.Array],
    counts: np.ndarray[Any, Any] | None,
    errors: dict[int, str],
    bad: dict[int, str],
    items: int,
) -> Made:
    """Failed items are null where one each came out, and without items where many did."""
    table = pa.table(dict(arrays))
    if counts is None:
        errors = bad | errors
        if errors and arrays:
            table = table.take(_with_nulls(items, list(errors)))
        return Made(table, None, errors)
    if bad:
        owners = np.repeat(np.arange(items), counts)
        for place, why in sorted(bad.items()):
            first = int(np.searchsorted(owners, owners[place]))
            errors.setdefault(int(owners[place]), f"item {place - first} that came out: {why}")
        failed = np.zeros(items, bool)
        failed[[int(owners[place]) for place in bad]] = True
        table = table.filter(pa.array(~failed[owners]))
        counts = np.where(failed, 0, counts)
    return Made(table, counts, errors)


def _with_nulls(count: int, places: list[int]) -> pa.Array:
    mask = np.zeros(count, bool)
    mask[places] = True
    return pa.array(np.arange(count), mask=mask)


# --- values ---------------------------------------------------------------------------------------


def _plain(values: Any) -> Any:
    """Tensors as NumPy arrays; all else as it is."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(values, torch.Tensor):
        tensor = values.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values


def _value(value: Any) -> Any:
    """One entry of a list: arrays of any depth as lists."""
    value = _plain(value)
    if isinstance(value, np.ndarray):
        return value if value.ndim == 1 and value.dtype.kind in "biuf" else value.tolist()
    if isinstance(value, pa.Scalar):
        return value.as_py()
    if isinstance(value, list | tuple) and value and not isinstance(value[0], str | bytes | int | float):
        return [_value(one) for one in value]
    return value


def _length(values: Any) -> int | None:
    """Entries; None: it has none, or is one value itself."""
    if isinstance(values, str | bytes | Mapping):
        return None
    if isinstance(values, np.ndarray):
        return len(values) if values.ndim else None
    if isinstance(values, pa.Array | pa.ChunkedArray | Sequence):
        return len(values)
    return None


def _kind(value: Any) -> str:
    return "None" if value is None else f"one {type(value).__name__}"


def _listed(kinds: set[str]) -> str:
    return " and ".join(sorted(kinds)) or "no kind"


def _line(error: BaseException) -> str:
    return first_line(error)[:_SHOWN]


def _wrong(stage: str, what: str, todo: str) -> InferError:
    return InferError(f"stage {stage} {what}", todo)
