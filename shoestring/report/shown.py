"""How a value is written for people, by the name of the format (source: ours)."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from shoestring.base.units import format_bytes, format_count, format_duration

EXCERPT_CHARS = 4000


def number(value: Any) -> str:
    """Four significant digits, with separators of thousands; whole numbers in full."""
    if value is None:
        return "not finite"
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e7:
        return format_count(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.1 <= size < 100 else f"{value:.4g}"


def plain(value: Any) -> str:
    """Settings and facts exactly as they were set."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value or "empty"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "none"
    return json.dumps(value, ensure_ascii=False)


def brief(value: Any) -> str:
    """A small table in a line, its numbers to four digits: `w0 0.483, w1 0.517`."""
    if not isinstance(value, dict):
        return number(value) if isinstance(value, float) else plain(value)
    return ", ".join(f"{label(key)} {brief(item)}" for key, item in value.items()) or "none"


def label(value: Any) -> str:
    """The key of a field as words: `reform_s` -> `reform`, `bits_per_byte` -> `bits per byte`."""
    words = str(value)
    for unit in ("_wall_s", "_s"):
        if not words.endswith("_per_s"):
            words = words.removesuffix(unit)
    return words.replace("_", " ").strip() or str(value)


def _excerpt(value: Any) -> str:
    text = plain(value)
    return text if len(text) <= EXCERPT_CHARS else text[:EXCERPT_CHARS] + " …"


def _date(value: Any) -> str:
    moment = datetime.datetime.fromtimestamp(float(value), datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


FORMATS: Mapping[str, Callable[[Any], str]] = MappingProxyType(
    {
        "number": number,
        "count": lambda value: number(value) if abs(value) < 100_000 else format_count(value),
        "bytes": format_bytes,
        "duration": format_duration,
        "clock": lambda value: f"{int(value) // 60}:{int(value) % 60:02d}",
        "percent": lambda value: f"{value:.1%}",
        "date": _date,
        "plain": plain,
        "brief": brief,
        "label": label,
        "text": str,
        "excerpt": _excerpt,
    }
)


def format_for(key: str, value: Any) -> str:
    """The format that fits a field by its name and type."""
    if isinstance(value, dict):
        return "brief"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "plain"
    if key.endswith("wall_s"):
        return "date"
    if key.endswith("_per_s"):
        return "count"
    for ending, name in (("_s", "duration"), ("_bytes", "bytes"), ("_share", "percent")):
        if key.endswith(ending) or key == ending[1:]:
            return name
    return "number"


def show(format_: str, value: Any) -> str:
    """The text of a value."""
    return FORMATS[format_](value)
