"""The page of a probe: both maps with their groups outlined, suspects by name, no script but ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shoestring.base.errors import RecordError
from shoestring.report.heatmap import HeatMap, TableView, chart, render, write_heatmap

NASTY = "</script><b>x"
LINKS = {
    (i, j): ((1e9, 5e-5) if {i, j} in ({0, 2}, {1, 3}) else (2e7, 2e-3)) for j in range(4) for i in range(j)
}
DATA = HeatMap(
    title="Four workers", lead="2 groups", names=("a/0", "b/0", "a/1", NASTY), groups=((0, 2), (1, 3)),
    links=LINKS, suspects=(("b/0", "its <best> link is slow"),), facts=(("card", "shared"),),
    tables=(TableView("Workers", ("worker", "rate"), (("a/0", "12 GFLOP/s"),)),),
)  # fmt: skip


def rows(name: str, layer: int) -> list[dict[str, object]]:
    spec = chart(DATA, name)
    data = spec["layer"][layer]["data"]
    return spec["datasets"][data["name"]] if "name" in data else data["values"]  # type: ignore[no-any-return]


def test_cells_stand_group_by_group_and_both_ways() -> None:
    cells = rows("bandwidth", 0)
    assert len(cells) == 2 * len(LINKS)
    fast = {(cell["x"], cell["y"]) for cell in cells if cell["value"] == 1e9}
    assert fast == {(0, 1), (1, 0), (2, 3), (3, 2)}
    assert {cell["text"] for cell in rows("latency", 0)} == {"50.0 us", "2.00 ms"}


def test_groups_are_outlined_on_the_diagonal() -> None:
    frames = [(row["x"], row["x2"], row["y"], row["y2"]) for row in rows("bandwidth", -1)]
    assert frames == [(0, 2, 0, 2), (2, 4, 2, 4)]


def test_suspects_are_named_in_words_and_on_the_axes() -> None:
    page = render(DATA, "/* library */")
    assert "<strong>b/0</strong>: its &lt;best&gt; link is slow" in page
    assert "b/0 (!)" in json.dumps(chart(DATA, "latency"))
    assert "12 GFLOP/s" in page and "Slow or faulty" in page
    assert "Slow or faulty" not in render(HeatMap("t", "l", ("a",), ((0,),), {}), "")


def test_no_name_can_leave_its_script() -> None:
    page = render(DATA, "/* library */")
    specs = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(specs) == 2 and all(NASTY in json.dumps(json.loads(spec)) for spec in specs)
    assert NASTY not in page and "default-src &#39;none&#39;" in page


def test_a_page_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    page = write_heatmap(tmp_path / "new" / "cluster.html", DATA, "/* library */")
    assert page.read_text(encoding="utf-8") == render(DATA, "/* library */")
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="choose another --page"):
        write_heatmap(tmp_path / "file" / "cluster.html", DATA, "/* library */")
