"""What all tests share: one thread a process, seeded properties, golden files, an order that ends early."""

from __future__ import annotations

import os

# Before anything loads torch: several processes share few cores, and some tests start many workers.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# Suites that others inherit: what failed there is shown as in a test.
pytest.register_assert_rewrite("tests.fleet.conformance")

GOLDEN_DIR = Path(__file__).parent / "golden"
FIRST = ("exclusive", "ray", "browser", "faults")

# The same examples in every run: red stays red until mended. HYPOTHESIS_PROFILE=search looks further.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("search", database=None, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write tests/golden anew instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no core idles at the end; those that need the machine never side by side."""
    for item in items:
        for marker in ("exclusive", "ray", "browser"):
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.xdist_group("exclusive"))
    items.sort(key=lambda item: not any(item.get_closest_marker(marker) for marker in FIRST))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A PostgreSQL server that answers (`tests.data.postgres.Server`); tests that kill it start it again."""
    from tests.data.postgres import MISSING, Server, binaries  # only who asks for it needs its packages

    if binaries() is None:
        pytest.skip(MISSING)
    server = Server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` compares with tests/golden/name; `pytest --regenerate` writes it instead."""

    def check(name: str, text: str) -> None:
        path = GOLDEN_DIR / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        assert text == expected, f"{path.name} has changed; if that is meant: pytest --regenerate"

    return check
