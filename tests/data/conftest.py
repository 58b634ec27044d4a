"""One PostgreSQL server for all tests of a process that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.data.postgres import MISSING, Server, binaries


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server that answers; tests that kill it start it again."""
    if binaries() is None:
        pytest.skip(MISSING)
    server = Server()
    server.start()
    yield server
    server.close()
