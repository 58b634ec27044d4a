"""Sizes, durations and counts as people read and write them (source: ours)."""

from __future__ import annotations

import math
import re

from shoestring.base.errors import ConfigError

_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_BYTES_OF: dict[str, int] = {
    "": 1,
    **{letter: 1024**power for power, letter in enumerate("bkmgtp")},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", start=1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", start=1)},
}
_SECONDS_OF = {
    "": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def format_bytes(size_bytes: float) -> str:
    """A size in binary units, three digits or so: `1536` -> `1.50 KiB`."""
    value = float(size_bytes)
    for unit in _BINARY_UNITS:
        # What would be shown as 1024 of a unit is shown as 1.00 of the next.
        if abs(value) < 1023.5 or unit == _BINARY_UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1024
    raise AssertionError("the last unit takes everything")


def format_duration(duration_s: float) -> str:
    """Seconds for people: `0.0042` -> `4.20 ms`, `95` -> `1 min 35 s`, `7260` -> `2 h 1 min`."""
    if not math.isfinite(duration_s):
        return "unknown"
    if duration_s < 0:
        return "-" + format_duration(-duration_s)
    if duration_s == 0:
        return "0 s"
    if duration_s < 0.9995e-3:
        return f"{_three_digits(duration_s * 1e6)} us"
    if duration_s < 0.9995:
        return f"{_three_digits(duration_s * 1e3)} ms"
    if duration_s < 59.95:
        return f"{_three_digits(duration_s)} s"
    minutes, seconds = divmod(round(duration_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(round(duration_s / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(duration_s / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def format_count(count: float) -> str:
    """A number of things: `950` -> `950`, `16_800_000_000` -> `16.8 B`."""
    value = float(count)
    if abs(value) < 999.5:
        return f"{value:.0f}" if value == int(value) else _three_digits(value)
    for unit in ("k", "M", "B"):
        value /= 1000
        if abs(value) < 999.5:
            return f"{_three_digits(value)} {unit}"
    return f"{_three_digits(value / 1000)} T"


def parse_bytes(text: str) -> int:
    """Bytes of `"64"`, `"1.5 GiB"`, `"200 MB"` (1000s with B alone, 1024s with iB or a bare letter).

    Raises:
        ConfigError: when it is no size.
    """
    match = _SIZE.fullmatch(text)
    if match is None or match[2].lower() not in _BYTES_OF:
        raise ConfigError(f"{text!r} is not a size", "write it like 512 MiB, 1.5 GB or 1048576")
    return round(float(match[1]) * _BYTES_OF[match[2].lower()])


def parse_duration(text: str) -> float:
    """Seconds of `"90"`, `"250ms"`, `"1h 30min"`; a bare number is seconds and stands alone.

    Raises:
        ConfigError: when it is no duration.
    """
    parts = list(_DURATION_PART.finditer(text))
    whole = parts and "".join(part[0] for part in parts) == text
    known = all(part[2].lower() in _SECONDS_OF for part in parts)
    bare = sum(not part[2] for part in parts)
    if not whole or not known or (bare and len(parts) > 1):
        raise ConfigError(f"{text!r} is not a duration", "write it like 90, 250 ms, 2 min or 1h 30min")
    return sum(float(part[1]) * _SECONDS_OF[part[2].lower()] for part in parts)


def _three_digits(value: float) -> str:
    decimals = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    return f"{value:.{decimals}f}"
