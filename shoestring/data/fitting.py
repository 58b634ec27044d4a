"""Rows into the one schema of a job's output: what does not fit costs its row that value (source: ours)."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shoestring.base.errors import first_line

Errors = dict[int, str]
"""Place of a row in a table -> what is wrong with it."""


def fitted(table: pa.Table, schema: pa.Schema) -> tuple[pa.Table, Errors]:
    """A table's rows as the schema wants them.

    A column is cast as a whole; where that fails, the rows that do not fit are found, each is null in that
    column and has an error, and all others stay. A column that the table lacks is null; columns that the
    schema does not have are left out.

    Returns:
        The table with `schema`, and the errors.
    """
    columns: list[pa.ChunkedArray] = []
    errors: Errors = {}
    for field in schema:
        if field.name not in table.schema.names:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        column = table.column(field.name)
        if column.type != field.type:
            column, bad = fitted_column(column, field.type)
            _note(errors, {place: f"column {field.name}: {why}" for place, why in bad.items()})
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema), errors


def fitted_column(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray, Errors]:
    """A column in another type: values that do not fit are null, with why, by place."""
    chunks: list[pa.Array] = []
    errors: Errors = {}
    at = 0
    for chunk in column.chunks:
        pieces, bad = _pieces(chunk, kind)
        chunks += pieces
        errors |= {at + place: why for place, why in bad.items()}
        at += len(chunk)
    return pa.chunked_array(chunks, kind), errors


def _pieces(array: pa.Array, kind: pa.DataType) -> tuple[list[pa.Array], Errors]:
    """The array in pieces of the new type. Halves and halves of halves are tried, so that a few values that
    do not fit cost few casts."""
    try:
        return [cast(array, kind)], {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        why = first_line(error)
        if not isinstance(error, pa.ArrowInvalid):  # no value of this type fits
            return [pa.nulls(len(array), kind)], dict.fromkeys(_given(array), why)
    if len(array) == 1:
        return [pa.nulls(1, kind)], {0: why}
    half = len(array) // 2
    left, bad_left = _pieces(array.slice(0, half), kind)
    right, bad_right = _pieces(array.slice(half), kind)
    return left + right, bad_left | {half + place: text for place, text in bad_right.items()}


def cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """All values in another type, without loss but for the last digits of a float.

    Raises:
        ArrowInvalid: a value does not fit.
        ArrowNotImplementedError, ArrowTypeError: no value of this type does.
    """
    if isinstance(array.type, pa.BaseExtensionType) and not isinstance(kind, pa.BaseExtensionType):
        array = array.storage
    found = array.cast(kind)
    _check_loss(array, found)
    return found


def _check_loss(array: pa.Array, found: pa.Array) -> None:
    """Arrow lets some losses pass: fields of records that the new type lacks, floats that become infinite,
    whole numbers that become true."""
    old, new = array.type, found.type
    if old == new:
        return
    if _is_list(old) and _is_list(new):
        _check_loss(array.flatten(), found.flatten())
    elif pa.types.is_struct(old) and pa.types.is_struct(new):
        names = [field.name for field in new]
        valid = array.is_valid()
        for place, field in enumerate(old):
            part = array.field(place).filter(valid)
            if field.name in names:
                _check_loss(part, found.field(names.index(field.name)).filter(valid))
            elif part.null_count < len(part):
                raise pa.ArrowInvalid(f"the schema has no field {field.name}")
    elif pa.types.is_floating(old) and pa.types.is_floating(new):
        if _infinite(found) != _infinite(array):
            raise pa.ArrowInvalid(f"a number is too large for {new}")
    elif (
        pa.types.is_integer(old)
        and pa.types.is_boolean(new)
        and pc.any(pc.not_equal(array, found.cast(old))).as_py()
    ):
        raise pa.ArrowInvalid("a number is neither 0 nor 1")


def _infinite(array: pa.Array) -> int:
    return int(pc.sum(pc.is_inf(array.cast(pa.float64()))).as_py() or 0)


def _given(array: pa.Array) -> list[int]:
    return [place for place, there in enumerate(array.is_valid().to_pylist()) if there]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _note(errors: Errors, more: Errors) -> None:
    for place, why in more.items():
        errors[place] = f"{errors[place]}; {why}" if place in errors else why


def with_errors(texts: pa.ChunkedArray, errors: Errors) -> pa.ChunkedArray:
    """A column of error texts with more of them: what was said before stays in front."""
    if not errors:
        return texts
    said: list[Any] = texts.to_pylist()
    for place, why in errors.items():
        said[place] = why if said[place] is None else f"{said[place]}; {why}"
    return pa.chunked_array([pa.array(said, texts.type)])
