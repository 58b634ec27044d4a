"""Values as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from shoestring.report.shown import format_for, show

SHOWN: list[tuple[str, Any, str]] = [
    ("number", 1_234_567, "1,234,567"),
    ("number", 2, "2"),
    ("number", 1.52345, "1.523"),
    ("number", 0.00012345, "0.0001234"),
    ("number", 15432.7, "15,433"),
    ("number", 75_771_179_104.05, "75.8 B"),
    ("number", -3.5, "-3.500"),
    ("number", float("inf"), "inf"),
    ("number", None, "not finite"),
    ("count", 9_123_456, "9.12 M"),
    ("count", 15_788.0, "15,788"),
    ("percent", 0.0754, "7.5%"),
    ("clock", 3725.9, "62:05"),
    ("date", 1_700_000_000.0, "2023-11-14 22:13:20 UTC"),
    ("plain", 0.0003, "0.0003"),
    ("plain", True, "yes"),
    ("plain", None, "none"),
    ("plain", "", "empty"),
    ("plain", ["w0", "w1"], "w0, w1"),
    ("plain", [], "none"),
    ("brief", {"w0": 0.48281, "w1": {"step_s": 2}}, "w0 0.483, w1 step 2"),
    ("brief", {}, "none"),
    ("label", "bits_per_byte", "bits per byte"),
    ("label", "reform_s", "reform"),
    ("label", "tokens_per_s", "tokens per s"),
    ("label", "_s", "_s"),
    ("excerpt", "short", "short"),
    ("excerpt", "x" * 5000, "x" * 4000 + " …"),
]


@pytest.mark.parametrize(
    ("format_", "value", "text"), SHOWN, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(SHOWN)]
)
def test_a_value_is_shown_as(format_: str, value: Any, text: str) -> None:
    assert show(format_, value) == text


def test_the_format_follows_the_name_and_type_of_a_field() -> None:
    expected = {
        ("wall_s", 1.7e9): "date",
        ("reform_s", 0.5): "duration",
        ("size_bytes", 10): "bytes",
        ("tokens_per_s", 10.0): "count",
        ("dead_share", 0.5): "percent",
        ("resumed", True): "plain",
        ("shares", ("w0",)): "plain",
        ("loss", 2.5): "number",
    }
    assert {key: format_for(*key) for key in expected} == expected
    assert format_for("shares", {"w0": 0.5}) == "brief"
