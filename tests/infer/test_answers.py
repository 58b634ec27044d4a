"""What stages answer: all shapes that make sense, agreed types, and errors that say what came instead."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from shoestring.base.errors import ConfigError, InferError
from shoestring.infer.answers import Made, normalised
from shoestring.infer.batch import Answer, Batch
from shoestring.infer.schemas import agreed, marked


def of(types: dict[str, pa.DataType], many: bool = False) -> pa.Schema:
    return marked(pa.schema(list(types.items())), pa.schema([]), many)


def made(result: Any, items: int = 3, schema: pa.Schema | None = None) -> Made:
    return normalised(result, items, schema, "s")


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([1, 2, 3], pa.int64(), [1, 2, 3]),
        ([1, 2.5, 3], pa.float64(), [1.0, 2.5, 3.0]),
        (["a", None, "c"], pa.string(), ["a", None, "c"]),
        (np.array([1, 2, 3], np.int16), pa.int16(), [1, 2, 3]),
        (np.arange(6)[::2], pa.int64(), [0, 2, 4]),
        (np.array(["a", "b", "c"]), pa.string(), ["a", "b", "c"]),
        (np.arange(6, dtype=np.float32).reshape(3, 2), pa.list_(pa.float32()), [[0, 1], [2, 3], [4, 5]]),
        (np.zeros((3, 1, 2), np.uint8), pa.list_(pa.list_(pa.uint8())), [[[0, 0]]] * 3),
        (np.zeros((3, 0), np.float32), pa.list_(pa.float32()), [[], [], []]),
        (torch.arange(3), pa.int64(), [0, 1, 2]),
        (torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True), pa.list_(pa.float32()), [[1, 1]] * 3),
        ([torch.tensor([1.0]), torch.tensor([]), torch.tensor([2.0, 3.0])], None, [[1], [], [2, 3]]),
        ([np.zeros((1, 2)), np.ones((2, 2)), np.zeros((0, 2))], None, [[[0, 0]], [[1, 1], [1, 1]], []]),
        ([{"a": 1}, {"a": 2}, None], pa.struct([("a", pa.int64())]), [{"a": 1}, {"a": 2}, None]),
        ([b"x", b"", b"y"], pa.binary(), [b"x", b"", b"y"]),
        (pa.array([1, None, 3]), pa.int64(), [1, None, 3]),
        (pa.chunked_array([[1], [2, 3]]), pa.int64(), [1, 2, 3]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), pa.string(), ["a", "b", "a"]),
        (pa.array([[1, 2]] * 3, pa.list_(pa.int8(), 2)), pa.list_(pa.int8()), [[1, 2]] * 3),
        ((True, False, True), pa.bool_(), [True, False, True]),
    ],
)
def test_values_of_many_kinds(values: Any, kind: pa.DataType | None, wanted: list[Any]) -> None:
    column = made({"x": values}).table.column("x")
    assert column.to_pylist() == wanted
    assert kind is None or column.type == kind


def test_tables_mappings_and_batches_are_answers() -> None:
    table = pa.table({"x": [1, 2, 3]})
    for result in (
        table,
        table.to_batches()[0],
        OrderedDict(x=[1, 2, 3]),
        Answer({"x": [1, 2, 3]}),
        Batch(table),
    ):
        assert made(result).table.to_pydict() == {"x": [1, 2, 3]}


def test_numbers_that_are_none_stay() -> None:
    found = made({"x": np.array([1.0, np.nan, np.inf])}, 3, of({"x": pa.float64()})).table.column("x")
    assert found.null_count == 0 and np.isnan(found[1].as_py()) and found[2].as_py() == np.inf


def test_failed_items_are_null_where_one_each_came_out() -> None:
    found = made(Answer({"x": [1, "no number", 3]}, errors={1: "bad"}), 3, of({"x": pa.int64()}))
    assert found.table.column("x").to_pylist() == [1, None, 3] and found.errors == {1: "bad"}
    found = made(Answer({"x": np.arange(3), "y": ["a", "b", "c"]}, errors={np.int64(0): "bad"}))
    assert found.table.to_pydict() == {"x": [None, 1, 2], "y": [None, "b", "c"]}


def test_where_all_failed_no_column_is_needed() -> None:
    errors = dict.fromkeys(range(3), "bad")
    assert made(Answer({}, errors=errors)).empty
    found = made(Answer({}, errors=errors), 3, of({"x": pa.int64()}))
    assert found.table.to_pydict() == {"x": [None] * 3} and not found.empty
    found = made(Answer({}, errors=errors), 3, of({"x": pa.int64()}, many=True))
    assert found.table.num_rows == 0 and found.counts is not None and found.counts.tolist() == [0, 0, 0]


def test_any_number_of_items_may_come_out() -> None:
    found = made(Answer({"x": [1, 2, 3]}, counts=torch.tensor([2, 0, 1])))
    assert found.counts is not None and found.counts.tolist() == [2, 0, 1]
    found = made(Answer({"x": []}, counts=[0, 0, 0]), 3, of({"x": pa.float32()}, many=True))
    assert found.table.column("x").type == pa.float32() and found.table.num_rows == 0
    found = made(Answer({"x": [7, 8, 9]}, errors={1: "bad"}), 3, of({"x": pa.int64()}, many=True))
    assert found.counts is not None and found.counts.tolist() == [1, 0, 1]
    assert found.table.column("x").to_pylist() == [7, 9]


def test_a_value_that_does_not_fit_costs_its_own_item() -> None:
    found = made({"x": [1, "two", 3]}, 3, of({"x": pa.int64()}))
    assert found.table.column("x").to_pylist() == [1, None, 3]
    assert list(found.errors) == [1] and "column 'x'" in found.errors[1] and "int64" in found.errors[1]
    found = made({"x": np.array([1.0, 2.5, 3.0])}, 3, of({"x": pa.int64()}))
    assert found.table.column("x").to_pylist() == [1, None, 3] and list(found.errors) == [1]
    found = made(Answer({"x": [1, 2, "three", 4]}, counts=[1, 2, 1]), 3, of({"x": pa.int64()}, many=True))
    assert found.counts is not None and found.counts.tolist() == [1, 0, 1]
    assert found.table.column("x").to_pylist() == [1, 4] and "item 1 that came out" in found.errors[1]


@pytest.mark.parametrize(
    ("result", "schema", "says"),
    [
        (None, None, "answered with None"),
        ("text", None, "answered with one str"),
        ({"x": [1, 2]}, None, "gave 2 values in column 'x' for 3 items"),
        ({"x": "abc"}, None, "gave one str in column 'x'"),
        ({"x": np.float32(1)}, None, "gave one float32"),
        ({}, None, "no column"),
        ({3: [1, 2, 3]}, None, "calls a column 3"),
        ({"x": [1, "a", object()]}, None, "int and object and str"),
        ({"x": np.zeros(3, complex)}, None, "complex"),
        ({"y": [1, 2, 3]}, of({"x": pa.int64()}), "without 'x'"),
        ({"x": [1, 2, 3], "y": [1, 2, 3]}, of({"x": pa.int64()}), "with 'y'"),
        (Answer({"x": [1, 2]}, counts=[1, 1]), None, "counts of shape [2]"),
        (Answer({"x": [1, 2]}, counts=[1, 2, -1]), None, "counts"),
        (Answer({"x": [1, 2]}, counts=[1.0, 1.0, 0.0]), None, "counts"),
        (Answer({"x": [1, 2]}, counts=[1, 1, 1]), None, "for 3 items that counts tell of"),
        (Answer({"x": [1, 2, 3]}, errors={3: "bad"}), None, "item 3 of 3"),
        (Answer({"x": [1, 2, 3]}, errors={-1: "bad"}), None, "item -1"),
        (Answer({"x": [1, 2, 3]}, counts=[1, 1, 1], errors={0: "bad"}), None, "error for item 0"),
        (Answer({"x": [1, 2]}, counts=[2, 0, 0]), of({"x": pa.int64()}), "in the trial"),
    ],
)
def test_answers_that_make_no_sense(result: Any, schema: pa.Schema | None, says: str) -> None:
    with pytest.raises(InferError) as caught:
        made(result, 3, schema)
    assert says in caught.value.what and "stage s " in caught.value.what and caught.value.todo


def test_what_was_answered_so_far_gives_one_schema() -> None:
    first = marked(pa.schema([("x", pa.int64()), ("y", pa.null())]), pa.schema([("in", pa.int8())]), False)
    second = marked(pa.schema([("x", pa.float64()), ("y", pa.list_(pa.null()))]), pa.schema([]), True)
    assert agreed([first]).field("y").type == pa.string() and agreed([first]).names == ["x", "y"]
    both = agreed([first, second])
    assert both.field("x").type == pa.float64() and both.field("y").type == pa.list_(pa.string())
    assert both.metadata[b"many"] == b"1" and len(agreed([])) == 0
    with pytest.raises(ConfigError, match="differ in type"):
        agreed([first, marked(pa.schema([("x", pa.string())]), pa.schema([]), False)])


def test_batches_are_arrays_without_copies() -> None:
    nested = pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]]], pa.list_(pa.list_(pa.float32())))
    fixed = pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2))
    batch = Batch(pa.table({"n": nested, "f": fixed, "u": [[1], [2, 3]], "s": ["a", "b"]}))
    assert batch["n"].shape == (2, 2, 2) and batch["n"][1, 0].tolist() == [5, 6]
    assert batch["f"].tolist() == [[1, 2], [3, 4]] and list(batch["u"][1]) == [2, 3]
    assert len(batch) == 2 and list(batch) == ["n", "f", "u", "s"] and batch["s"].tolist() == ["a", "b"]
    with pytest.raises(KeyError, match="there are: n, f"):
        batch["missing"]
