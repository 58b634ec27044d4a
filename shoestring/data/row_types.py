"""Which Arrow type a column of rows has, from all of its values (source: ours).

Types only ever widen: whole numbers to numbers, records by their fields. What does not go together (a number
here, a text there) is kept as JSON text, and said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from shoestring.base.errors import first_line

JSON_TEXT = pa.large_string()
"""The type of a column that holds values of several kinds, each as JSON. No other column has it."""
_INT64 = 1 << 63
_SIMPLE = {bool: pa.bool_(), float: pa.float64(), str: pa.string(), type(None): pa.null()}

_UNFIT = (pa.lib.ArrowException, ValueError, TypeError, AttributeError, OverflowError)
"""What a value raises that a type cannot hold."""


def type_of(value: Any) -> pa.DataType:
    """The narrowest type of a value that JSON can hold."""
    simple = _SIMPLE.get(type(value))
    if simple is not None:
        return simple
    if isinstance(value, int):
        return pa.int64() if -_INT64 <= value < _INT64 else JSON_TEXT
    if isinstance(value, list):
        inner: pa.DataType = pa.null()
        for item in value:
            inner = widened(inner, type_of(item))
        return pa.list_(inner)
    if not value:
        return JSON_TEXT  # a record without fields has no Arrow type that files can hold
    return pa.struct([pa.field(name, type_of(item)) for name, item in value.items()])


def widened(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The narrowest type that holds values of both."""
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(widened(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        return pa.struct(list(_fields_widened(_fields(one), _fields(other)).items()))
    return JSON_TEXT


def fields_widened(fields: Mapping[str, pa.DataType], record: Mapping[str, Any]) -> dict[str, pa.DataType]:
    """Columns that hold this record, too."""
    found = dict(fields)
    for name, value in record.items():
        if name not in found or not _holds(found[name], value):
            found[name] = widened(found[name], type_of(value)) if name in found else type_of(value)
    return found


def as_type(value: Any, kind: pa.DataType) -> Any:
    """A value as a column of this type takes it."""
    if value is None:
        return None
    if kind == JSON_TEXT:
        return msgspec.json.encode(value, enc_hook=str).decode()
    if pa.types.is_list(kind):
        return [as_type(item, kind.value_type) for item in value]
    if pa.types.is_struct(kind):
        return {field.name: as_type(value.get(field.name), field.type) for field in kind}
    return float(value) if kind == pa.float64() else value


def column_of(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Values as a column of this type.

    Returns:
        The column, and errors by place: a value that the type cannot hold is null there.
    """
    try:
        return pa.array([as_type(value, kind) for value in values], kind), {}
    except _UNFIT:
        pass
    made, errors = [], {}
    for place, value in enumerate(values):
        try:
            made.append(pa.array([as_type(value, kind)], kind))
        except _UNFIT as error:
            made.append(pa.nulls(1, kind))
            errors[place] = first_line(error)
    return pa.concat_arrays(made), errors


def cast(column: pa.ChunkedArray, kind: pa.DataType) -> tuple[pa.ChunkedArray | pa.Array, dict[int, str]]:
    """A column of another file as one of this type; what is kept as JSON text is made so.

    Returns:
        The column, and errors by place: a value that the type cannot hold is null there.
    """
    if column.type == kind:
        return column, {}
    if not _has_json(kind):
        try:
            return column.cast(kind), {}
        except _UNFIT:
            pass
    values, unread = [], {}
    for place, value in enumerate(column):
        try:
            values.append(value.as_py())
        except _UNFIT as error:
            values.append(None)
            unread[place] = first_line(error)
    made, errors = column_of(values, kind)
    return made, unread | errors


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of a parquet file's column as rows have it: one type for text, however long and coded."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = plain(kind.value_type)
        if inner == kind.value_type:
            return kind
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, plain(field.type)) for field in kind])
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """As a file can hold it: a column without any value is text."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, settled(field.type)) for field in kind])
    return kind


def _has_json(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_json(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_json(kind.value_type)
    return bool(kind == JSON_TEXT)


def _holds(kind: pa.DataType, value: Any) -> bool:
    """Whether a value needs no wider type; a quick look for the usual ones."""
    if value is None or kind == JSON_TEXT:
        return True
    if type(value) is int and kind == pa.float64():
        return -_INT64 <= value < _INT64
    return type(value) is not int and _SIMPLE.get(type(value)) == kind


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    return {field.name: field.type for field in kind}


def _fields_widened(
    one: Mapping[str, pa.DataType], other: Mapping[str, pa.DataType]
) -> dict[str, pa.DataType]:
    found = dict(one)
    for name, kind in other.items():
        found[name] = widened(found[name], kind) if name in found else kind
    return found
