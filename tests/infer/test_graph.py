"""Stages as a tree: names, order, columns that are handed on, and settings that make no sense."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from shoestring.base.errors import ConfigError
from shoestring.infer.config import InferConfig, StageConfig
from shoestring.infer.graph import Graph

SOURCE = pa.schema([("text", pa.string()), ("number", pa.int64())])


def graph(*stages: dict[str, Any]) -> Graph:
    return Graph.of(InferConfig(stages=tuple(StageConfig(**one) for one in stages)), SOURCE)


def test_names_come_from_what_a_stage_uses() -> None:
    found = graph(
        {"uses": "some/where/detect.py:BigDetector"},
        {"uses": "models/res net.onnx"},
        {"kind": "images", "after": "rows"},
        {"uses": "package.module:BigDetector"},
        {"name": "My-Own_1"},
    )
    assert list(found.nodes) == ["bigdetector", "res-net", "images", "bigdetector-2", "My-Own_1"]


def test_order_parents_leaves_and_what_is_kept() -> None:
    found = graph(
        {"name": "c", "after": "b"},
        {"name": "a", "after": "rows", "keep": True},
        {"name": "b", "after": "a"},
        {"name": "d", "after": "a", "keep": False},
    )
    assert list(found.nodes) == ["a", "b", "c", "d"]
    assert found.roots == ("a",) and found.nodes["a"].children == ("b", "d")
    assert found.kept == ("a", "c") and found.path("c") == ("a", "b", "c")
    assert [node.leaf for node in found.nodes.values()] == [False, False, True, True]


def test_what_stages_below_read_is_passed_on() -> None:
    found = graph(
        {"name": "a", "columns": ("text",)},
        {"name": "b", "columns": ("made",)},
        {"name": "c", "columns": ("number", "made")},
        {"name": "d", "after": "rows"},
        {"name": "e"},
    )
    assert set(found.nodes["a"].passes or ()) == {"made", "number"}
    assert found.nodes["b"].passes == ("number", "made") and found.nodes["c"].passes == ()
    assert found.nodes["d"].passes is None, "a stage that reads all"
    assert found.nodes["a"].reads == ("text",) and found.nodes["e"].reads == ()


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "no stage"),
        ([{"name": "a"}, {"name": "a"}], "two stages are called 'a'"),
        ([{"name": "rows"}], "cannot be called 'rows'"),
        ([{"name": "load"}], "cannot be called 'load'"),
        ([{"name": "a/b"}], "no name for a stage"),
        ([{"name": "detect"}, {"name": "b", "after": "detekt"}], "did you mean 'detect'"),
        ([{"name": "a", "after": "a"}], "after itself"),
        ([{"name": "a", "after": "b"}, {"name": "b", "after": "a"}], "ring"),
        ([{"name": "a", "columns": ("txt",)}], "did you mean 'text'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(stages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        graph(*stages)
    assert says in str(caught.value)
