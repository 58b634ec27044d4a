"""Figures in the pages are the recorded ones: written by a switch, never typed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.rules.source import ROOT, tracked_files

# <!-- figure: NAME.key FORMAT -->shown<!-- /figure -->: `key` of the figures in benchmarks/results/NAME.json.
FIGURE = re.compile(r"(<!-- figure: (?P<name>\w+)\.(?P<key>\w+) (?P<format>\S+) -->)(.*?)(<!-- /figure -->)")


def recorded(name: str, key: str) -> float:
    """A figure as its benchmark recorded it."""
    results = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return float(results["figures"][key])


def with_figures(page: str, figure: Callable[[str, str], float]) -> str:
    """A page with every figure between markers written anew."""
    return FIGURE.sub(lambda m: f"{m[1]}{figure(m['name'], m['key']):{m['format']}}{m[6]}", page)


def pages() -> list[Path]:
    """Every page of text in the repository, but the one that explains the markers."""
    return [path for path in tracked_files() if path.suffix == ".md" and path.name != "CONTRIBUTING.md"]


def test_the_figures_in_the_pages_are_the_recorded_ones(request: pytest.FixtureRequest) -> None:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        right = with_figures(text, recorded)
        if request.config.getoption("--regenerate"):
            path.write_text(right, encoding="utf-8")
        else:
            assert text == right, (
                f"{path.relative_to(ROOT)} shows other figures; pytest tests/rules --regenerate"
            )


def test_a_typed_figure_is_found() -> None:
    page = "it does <!-- figure: ledger.ops ,.0f -->9,999<!-- /figure --> a second"
    assert with_figures(page, lambda name, key: 1234.4) == page.replace("9,999", "1,234")


def test_every_marker_is_well_formed() -> None:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        assert text.count("<!-- figure:") == text.count("<!-- /figure -->") == len(FIGURE.findall(text)), path
