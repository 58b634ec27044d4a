"""`shoestring plan`: the tables and the picture, for workers and for strategies."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from shoestring.base.errors import ConfigError
from shoestring.cluster.planner import plan_strategy
from shoestring.cluster.strategies import equal_groups
from shoestring.commands.plan import front_page, plan, points_of, show_strategies
from tests.cluster.clusters import JOB, hosts
from tests.commands.journeys import shoestring, tiny_sets, write_texts

LAYOUT = equal_groups(4, 2)


def _shown(price_per_hour: float = 0.0) -> str:
    made = plan_strategy(JOB, hosts(2, 2, price_per_hour=price_per_hour), LAYOUT)
    out = io.StringIO()
    show_strategies(made, Console(file=out, width=240))
    return out.getvalue()


def test_the_table_names_all_strategies_and_the_choice() -> None:
    made = plan_strategy(JOB, hosts(2, 2), LAYOUT)
    text = _shown()
    assert all(row.name in text for row in made.rows)
    lines = text.splitlines()
    chosen = next(line for line in lines if line.startswith(f"│ {made.strategy} "))
    assert "chosen" in chosen
    assert "2 groups of 2 ranks" in lines[0]
    assert "price" not in text and "price a step" in _shown(price_per_hour=1.0)


def test_a_narrow_terminal_shows_what_can_be_had() -> None:
    made = plan_strategy(JOB, hosts(2, 2), LAYOUT)
    out = io.StringIO()
    show_strategies(made, Console(file=out, width=80))
    names = [line[2:5] for line in out.getvalue().splitlines() if line.startswith("│ ")]
    assert {name for name in names if name.strip()} == {row.name for row in made.rows if row.choosable}
    assert "--json has all" in out.getvalue()


def test_the_picture_leaves_out_second_names_and_marks_the_choice() -> None:
    made = plan_strategy(JOB, hosts(1, 4), equal_groups(4, 4))
    points = points_of(made)
    assert len({point.name for point in points}) < 27
    assert [point.name for point in points if point.state == "chosen"] == [made.strategy]
    assert all(point.state == "dominated" for point in points if point.name == "GGN")


def test_the_page_of_a_plan_holds_its_reason() -> None:
    made = plan_strategy(JOB, hosts(2, 2), LAYOUT)
    page = front_page(made)
    assert made.reason in page and "vegaEmbed" in page


def test_the_command_draws_where_it_is_asked(tmp_path: Path) -> None:
    sets = tiny_sets(write_texts(tmp_path / "texts"), tmp_path / "cache")
    picture = tmp_path / "plan.png"
    done = shoestring("plan", "pretrain", *sets, "--picture", str(picture), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["alternatives"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither \.html nor \.png"):
        plan("no such recipe", (), (), tmp_path / "plan.gif", as_json=False)
