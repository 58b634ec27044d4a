"""The picture of time over memory: the front, the limit, and the files that come of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shoestring.base.errors import ConfigError
from shoestring.report.front import Point, front, front_chart, front_page, write_front

MIB = 2**20
POINTS = [
    Point("slow and small", 9.0, 10 * MIB, "possible", "slower"),
    Point("middle", 3.0, 20 * MIB, "chosen", "chosen"),
    Point("beaten", 4.0, 30 * MIB, "dominated", "middle is better </script>"),
    Point("large", 1.0, 40 * MIB, "too large", "needs more"),
    Point("also large", 2.0, 40 * MIB, "too large", "needs more"),
]


def _text(spec: dict[str, Any]) -> str:
    return json.dumps(spec)


def test_the_front_is_what_nothing_beats() -> None:
    assert [point.name for point in front(POINTS)] == ["slow and small", "middle", "large"]


def test_the_chart_has_every_point_and_the_limit_where_it_can_be_seen() -> None:
    spec = _text(front_chart(POINTS, 25 * MIB))
    assert all(point.name in spec for point in POINTS)
    assert "limit 25.0 MiB" in spec
    assert "limit" not in _text(front_chart(POINTS, 1000 * MIB))
    assert "limit" not in _text(front_chart(POINTS, 0))


def test_the_time_axis_is_logarithmic_where_a_linear_one_would_hide_the_fast_ones() -> None:
    assert '"type": "log"' in _text(front_chart(POINTS, 0))
    assert '"type": "log"' not in _text(front_chart(POINTS[1:], 0))


def test_the_page_needs_nothing_and_lets_nothing_out() -> None:
    page = front_page(POINTS, 25 * MIB, "<b>title", "because & so", "window.vegaEmbed = 0;")
    assert "window.vegaEmbed = 0;" in page and "&lt;b&gt;title" in page and "because &amp; so" in page
    assert "http" not in page.replace("http-equiv", "").split("<script>")[0]
    spec = page.split('<script type="application/json">')[1].split("</script>")[0]
    assert "middle is better" in json.dumps(json.loads(spec))
    assert page.count("<tr") == len(POINTS) + 1


def test_a_png_is_drawn_and_other_names_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "front.png"
    write_front(picture, POINTS, 25 * MIB, "title", "reason")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [picture]
    with pytest.raises(ConfigError, match=r"neither .html nor .png"):
        write_front(tmp_path / "front.svg", POINTS, 0, "title", "reason")
    with pytest.raises(ConfigError, match="cannot write"):
        write_front(tmp_path / "no" / "front.png", POINTS, 0, "title", "reason")
