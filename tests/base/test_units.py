"""Sizes, durations and counts, as people read and write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.base.errors import ConfigError
from shoestring.base.units import format_bytes, format_count, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1536, "1.50 KiB"), (1024**2 - 1, "1.00 MiB"),
     (15.25 * 1024**3, "15.2 GiB"), (2000 * 1024**5, "2000 PiB"), (-2048, "-2.00 KiB")],
)  # fmt: skip
def test_format_bytes(size_bytes: float, text: str) -> None:
    assert format_bytes(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0, "0 s"), (42e-6, "42.0 us"),
     (0.0042, "4.20 ms"), (0.9999, "1.00 s"), (1.5, "1.50 s"), (59.99, "1 min"),
     (95, "1 min 35 s"), (3599.9, "1 h"), (7260, "2 h 1 min"), (49 * 3600, "2 d 1 h"), (-95, "-1 min 35 s"),
     (math.inf, "unknown"), (math.nan, "unknown")],
)  # fmt: skip
def test_format_duration(duration_s: float, text: str) -> None:
    assert format_duration(duration_s) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (2.5, "2.50"), (999.7, "1.00 k"), (1200, "1.20 k"), (16.8e9, "16.8 B"),
     (999.6e6, "1.00 B"), (3e12, "3.00 T"), (-1200, "-1.20 k")],
)  # fmt: skip
def test_format_count(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("64", 64), ("64 B", 64), ("1.5 GiB", 1_610_612_736), ("200 MB", 200_000_000),
     ("4k", 4096),
     (" 2 tib ", 2 * 1024**4)],
)  # fmt: skip
def test_parse_bytes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [("90", 90), ("250ms", 0.25), ("1h 30min", 5400), ("2 m", 120),
     ("1.5 d", 129_600), ("1h30m5s", 5405),
     ("1e-3", 0.001)],
)  # fmt: skip
def test_parse_duration(text: str, duration_s: float) -> None:
    assert parse_duration(text) == pytest.approx(duration_s)


@pytest.mark.parametrize("text", ["", "x", "5 parsecs", "-3 s", "1h 30", "3s!", "s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["", "x", "5 apples", "-3 MB", "1 GiB 5 MiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        parse_bytes(text)


@given(st.floats(min_value=0, max_value=2**60))
def test_a_size_reads_back_within_what_was_shown(size_bytes: float) -> None:
    shown = format_bytes(size_bytes)
    assert parse_bytes(shown) == pytest.approx(size_bytes, rel=0.006, abs=0.5)


@given(st.floats(min_value=1e-6, max_value=1e6))
def test_a_duration_reads_back_within_what_was_shown(duration_s: float) -> None:
    assert parse_duration(format_duration(duration_s)) == pytest.approx(duration_s, rel=0.02)
